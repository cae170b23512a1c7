"""Task files: what they say, where their data lies, and that nothing they name is run."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.evaluators.tasks.task_files import is_task_file, read_task_file

_KEYS = st.text("abcdefgh_", min_size=1, max_size=8).filter(
    lambda key: key not in ("include", "group", "task", "dataset_path", "dataset_kwargs")
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def write(path: Path, record: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(record), encoding="utf-8")
    return path


@settings(max_examples=30)
@given(plain=st.dictionaries(_KEYS, _VALUES, max_size=4), base=st.dictionaries(_KEYS, _VALUES, max_size=4))
def test_a_file_says_what_it_says_over_what_it_includes(
    tmp_path_factory: pytest.TempPathFactory, plain: dict[str, Any], base: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("tasks")
    write(folder / "base" / "base.yaml", base)
    path = write(folder / "own.yaml", {"task": "own", "include": "base/base.yaml", **plain})
    assert read_task_file(path) == {**base, **plain, "task": "own"}


@pytest.mark.parametrize(
    ("files", "meant"),
    [
        ("a.jsonl", "{folder}/a.jsonl"),
        ({"test": "data/*.jsonl"}, {"test": "{folder}/data/*.jsonl"}),
        ({"test": ["a.csv", "/b.csv"]}, {"test": ["{folder}/a.csv", "/b.csv"]}),
        ("hf://datasets/x/a.jsonl", "hf://datasets/x/a.jsonl"),
        ("https://host/a.jsonl", "https://host/a.jsonl"),
    ],
)
def test_data_lies_beside_the_file_that_names_it(files: Any, meant: Any, tmp_path: Path) -> None:
    options = {"data_files": files, "field": "rows"}
    record = {"task": "t", "dataset_path": "json", "dataset_kwargs": options}
    inner = write(tmp_path / "inner" / "task.yaml", record)
    outer = write(tmp_path / "outer.yaml", {"task": "u", "include": "inner/task.yaml"})
    found = yaml.safe_load(yaml.safe_dump(meant).replace("{folder}", str(inner.parent)))
    for path in (inner, outer):
        assert read_task_file(path)["dataset_kwargs"] == {"data_files": found, "field": "rows"}


def test_folders_of_data_and_names_inside_repositories(tmp_path: Path) -> None:
    record = {"task": "t", "dataset_path": "./data", "dataset_kwargs": {"data_files": "a.jsonl"}}
    found = read_task_file(write(tmp_path / "folder.yaml", record))
    assert Path(found["dataset_path"]) == tmp_path / "data"
    assert found["dataset_kwargs"] == {"data_files": "a.jsonl"}
    record["dataset_path"] = "owner/repository"
    assert read_task_file(write(tmp_path / "hub.yaml", record)) == record
    record = {"task": "t", "dataset_path": "json", "dataset_kwargs": {"data_dir": "rows"}}
    found = read_task_file(write(tmp_path / "json.yaml", record))
    assert found["dataset_kwargs"] == {"data_dir": str(tmp_path / "rows")}


def test_functions_are_imported_for_those_who_trust_them_only(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\ndef twice(x):\n    return 2 * x\n"
    )
    (tmp_path / "base.yaml").write_text("process_docs: !function own.twice\njoin: !function os.path.join\n")
    path = write(tmp_path / "task.yaml", {"task": "t", "include": "base.yaml"})
    message = r"base\.yaml runs Python code \(!function own\.twice\), which is not allowed; set trust_remote"
    with pytest.raises(ValueError, match=message):
        read_task_file(path)
    assert not (tmp_path / "ran").exists()
    found = read_task_file(path, trust_remote_code=True)
    assert (tmp_path / "ran").exists()
    assert found["process_docs"](4) == 8
    assert found["join"]("a", "b") == "a/b"


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("tag", ["python/object/apply:os.mkdir", "python/name:os.mkdir"])
def test_other_tags_are_never_followed(tag: str, trust: bool, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(f"task: t\nx: !!{tag} [{tmp_path / 'made'}]\n")
    with pytest.raises(ValueError, match=r"task\.yaml is no task file \(could not determine a constructor"):
        read_task_file(path, trust_remote_code=trust)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "is no task file; it must map keys to values"),
        ("task: [", "is no task file .*line 1"),
        ("task: größe", r"is no task file \('utf-8' codec can't decode"),
        ("output_type: multiple_choice", "has no `task` with a name; give the file of each task"),
        ("group: g\ntask: [a, b]", "has no `task` with a name; give the file of each task, not of a group"),
        ("task: t\ninclude: task.yaml", "includes itself; remove one `include`"),
        ("task: t\ndataset_path: pandas", r"unpickles its data \(dataset_path: pandas\); store it as json"),
    ],
)
def test_files_that_are_no_tasks(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        read_task_file(tmp_path / "task.yaml")


def test_a_missing_file(tmp_path: Path) -> None:
    path = write(tmp_path / "task.yaml", {"task": "t", "include": "none.yaml"})
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        read_task_file(path)


def test_files_and_names_are_told_apart() -> None:
    assert is_task_file("tasks/own.yaml")
    assert is_task_file("own.yml")
    assert not is_task_file("mmlu")
    assert not is_task_file("leaderboard/gpqa")
