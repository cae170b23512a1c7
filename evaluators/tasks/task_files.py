"""Reading of lm-eval's task files, without running any code that they name."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

TRUST = "set trust_remote_code=true if you trust it"

_FUNCTION = "!function"
_UNPICKLES = "pandas"
"""Name of the only loader of `datasets` that unpickles the files it is given."""


def is_task_file(task: str) -> bool:
    """Return whether `task` is the path of a task file, and not the name of a task."""
    return task.endswith((".yaml", ".yml"))


def read_task_file(path: Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Read the task in a YAML file, merged with the files that it includes.

    Paths of local data (`dataset_path: json` and the like with `data_files` or `data_dir`) are relative to the file
    that names them.

    Args:
        path: path of the task file.
        trust_remote_code: whether to import the Python functions that the file names, and to unpickle its data.

    Raises:
        FileNotFoundError: the file, or one that it includes, does not exist.
        ValueError: the file does not hold a task, or it would run code and `trust_remote_code` is not set.
    """
    record = _merged(path.expanduser().resolve(), trust_remote_code, ())
    if "group" in record or not isinstance(record.get("task"), str):
        raise ValueError(f"{path} has no `task` with a name; give the file of each task, not of a group")
    if record.get("dataset_path") == _UNPICKLES and not trust_remote_code:
        raise ValueError(f"{path} unpickles its data (dataset_path: {_UNPICKLES}); store it as json or csv")
    return record


def _merged(path: Path, trust: bool, above: tuple[Path, ...]) -> dict[str, Any]:
    """Read the mapping in a file and merge it over those of the files that it includes.

    Args:
        path: path of the file.
        trust: whether to import the Python functions that the file names.
        above: paths of the files that include this one, to refuse circles.
    """
    if path in above:
        raise ValueError(f"{path} includes itself; remove one `include`")
    own = _read(path, trust)
    included = own.pop("include", [])
    merged: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included]:
        merged |= _merged((path.parent / str(name)).resolve(), trust, (*above, path))
    return merged | _anchored(own, path.parent, merged.get("dataset_path"))


def _read(path: Path, trust: bool) -> dict[str, Any]:
    try:
        loader = _loader(path, trust)(path.read_text(encoding="utf-8"))
        record = loader.get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no task file ({' '.join(str(error).split())}); correct it") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is no task file; it must map keys to values")
    return record


def _loader(path: Path, trust: bool) -> type[yaml.SafeLoader]:
    """Return a safe YAML loader that also knows the tag of Python functions; all other tags stay unknown."""

    class Loader(yaml.SafeLoader):
        pass

    def function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Callable[..., Any]:
        name = str(loader.construct_scalar(node))
        if not trust:
            raise ValueError(f"{path} runs Python code ({_FUNCTION} {name}), which is not allowed; {TRUST}")
        return _imported(path.parent, name)

    Loader.add_constructor(_FUNCTION, function)
    return Loader


def _imported(folder: Path, name: str) -> Callable[..., Any]:
    """Import the function `module.function`, from a file in `folder` or else from an installed module."""
    module_name, _, function = name.rpartition(".")
    file = folder / f"{module_name.replace('.', '/')}.py"
    spec = importlib.util.spec_from_file_location(module_name, file) if file.is_file() else None
    if spec is None or spec.loader is None:
        module = importlib.import_module(module_name)
    else:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    found: Callable[..., Any] = getattr(module, function)
    return found


def _anchored(record: Mapping[str, Any], folder: Path, dataset: object = None) -> dict[str, Any]:
    """Return a task's mapping in which the paths of local data are joined to `folder`.

    Args:
        record: mapping of one file.
        folder: folder of the file.
        dataset: `dataset_path` of the included files, which holds if the file has none.
    """
    found = dict(record)
    dataset = str(found.get("dataset_path", dataset) or "")
    if dataset.startswith("."):
        found["dataset_path"] = str(folder / dataset)
    options = found.get("dataset_kwargs")
    # With a slash, `dataset_path` is a repository of the hub, and the options name files inside it.
    if isinstance(options, dict) and "/" not in dataset:
        paths = {
            name: _absolute(options[name], folder) for name in ("data_files", "data_dir") if name in options
        }
        found["dataset_kwargs"] = options | paths
    return found


def _absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {name: _absolute(part, folder) for name, part in value.items()}
    if isinstance(value, list):
        return [_absolute(part, folder) for part in value]
    return str(folder / value) if isinstance(value, str) and ":" not in value else value
