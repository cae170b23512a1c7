"""Task files of lm-eval, read without running anything that they name."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

TRUST = "set trust_remote_code=true if you trust it"

_FUNCTION = "!function"
_UNPICKLES = "pandas"
"""The one loader of `datasets` that unpickles the files it is given."""


def is_task_file(task: str) -> bool:
    """Whether a file is meant, not the name of a task."""
    return task.endswith((".yaml", ".yml"))


def read_task_file(path: Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """The task in a YAML file, what it includes merged in.

    Local data (`dataset_path: json` and the like with `data_files` or `data_dir`) is relative to the file that
    names it.

    Args:
        path: path of the task file.
        trust_remote_code: import the Python functions that it names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no task file, or it runs code and that is not allowed.
    """
    record = _merged(path.expanduser().resolve(), trust_remote_code, ())
    if "group" in record or not isinstance(record.get("task"), str):
        raise ValueError(f"{path} has no `task` with a name; give the file of each task, not of a group")
    if record.get("dataset_path") == _UNPICKLES and not trust_remote_code:
        raise ValueError(f"{path} unpickles its data (dataset_path: {_UNPICKLES}); store it as json or csv")
    return record


def _merged(path: Path, trust: bool, above: tuple[Path, ...]) -> dict[str, Any]:
    """The mapping in a file, over those of the files that it includes."""
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
    """A safe loader that also knows the tag of Python functions; others stay unknown."""

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
    """`module.function`, from a file in `folder` or else an installed module."""
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
    """The same with local data relative to `folder`; `dataset` is what an included file loads."""
    found = dict(record)
    dataset = str(found.get("dataset_path", dataset) or "")
    if dataset.startswith("."):
        found["dataset_path"] = str(folder / dataset)
    options = found.get("dataset_kwargs")
    if isinstance(options, dict) and "/" not in dataset:  # otherwise names inside a repository
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
