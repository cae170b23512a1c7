"""Files of others in the places that commands write to, and damaged levels: refused in one line, left as they are."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Finished, Tiny, shell


def contents(folder: Path) -> dict[str, str | bytes]:
    """Every file, folder and link below."""
    return {
        path.relative_to(folder).as_posix(): (
            str(path.readlink()) if path.is_symlink() else "folder" if path.is_dir() else path.read_bytes()
        )
        for path in sorted(folder.rglob("*"))
    }


def refused(folder: Path, *arguments: str | Path) -> str:
    """The one line that refuses a command, which must leave everything in `folder` as it was."""
    before = contents(folder)
    answer = shell(*arguments)
    assert (answer.code, len(answer.err.splitlines())) == (2, 1), answer
    assert contents(folder) == before
    return answer.err.removeprefix("paretopress: ").rstrip()


def foreign_folder(folder: Path) -> Path:
    """Somebody's folder with the very names that a run uses."""
    for name in (
        "profiles/mine.yaml",
        "scores/a-01234567.json",
        "refits/x/block-000.safetensors",
        "journal.jsonl",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("precious")
    for name in ("environment.json", "report.html", ".notes.part", ".a.1.01234567.part"):
        (folder / name).write_text("precious")
    return folder


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run with its level databases."""
    shutil.copytree(finished.folder / "runs", tmp_path / "runs", symlinks=True)
    return tmp_path / "runs" / "tiny"


@pytest.mark.parametrize("config", [None, "model: theirs\n", "format_version: 1\n", "not: [yaml", "link"])
@pytest.mark.parametrize("options", [(), ("--fresh",), ("--dry-run",)], ids=" ".join)
def test_search_leaves_folders_of_others_alone(
    config: str | None, options: tuple[str, ...], tiny: Tiny, tmp_path: Path
) -> None:
    folder = foreign_folder(tmp_path / "theirs")
    if config == "link":
        (folder / "config.yaml").symlink_to(tmp_path / "nowhere")
    elif config is not None:
        (folder / "config.yaml").write_text(config)
    line = refused(tmp_path, "search", tiny.config(tmp_path), "--run", folder, *options)
    assert line.startswith(f"{folder} is not a run folder: ")
    assert line.endswith("; give --run a new folder, an empty one or a run folder")


@pytest.mark.parametrize("command", ["sensitivities", "status", "show", "refit", "evaluate"])
def test_other_commands_leave_folders_of_others_alone(command: str, tiny: Tiny, tmp_path: Path) -> None:
    folder = foreign_folder(tmp_path / "theirs")
    config = tiny.config(tmp_path)
    arguments = {
        "sensitivities": (config, "--run", folder),
        "evaluate": (tiny.model, "--run", folder),
    }.get(command, (folder,))
    assert refused(tmp_path, command, *arguments).startswith(f"{folder} is not a run folder: ")


def test_a_run_that_stopped_before_it_began_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    for name in ("profiles", "inputs", "sensitivities"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / ".lock").write_text("")
    (tmp_path / "run" / ".config.yaml.17.01234567.part").write_text("half")
    answer = shell("search", tiny.config(tmp_path), "--run", tmp_path / "run")
    assert answer.code == 0, answer.err
    (tmp_path / "other" / "profiles").mkdir(parents=True)
    (tmp_path / "other" / ".lock").write_text("")
    (tmp_path / "other" / "profiles" / "mine.yaml").write_text("precious")
    assert "holds profiles" in refused(
        tmp_path / "other", "search", tiny.config(tmp_path), "--run", tmp_path / "other"
    )


@pytest.mark.parametrize(
    "name", ["journal.jsonl", "environment.json", "report.html", "profiles", ".lock", "refits"]
)
def test_a_run_is_not_written_through_links(name: str, run: Path, finished: Finished, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if (run / name).is_dir() or (run / name).exists():
        (run / name).rename(target)
    else:
        target.mkdir()
    (run / name).symlink_to(target)
    for options in ((), ("--fresh",)):
        line = refused(tmp_path, "search", finished.config, "--run", run, *options)
        assert line.startswith(f"{run / name} is a link, and a run needs a f")


def test_fresh_deletes_only_what_the_program_wrote(run: Path, finished: Finished, tmp_path: Path) -> None:
    theirs = {
        "notes.txt": "precious",
        ".notes.part": "precious",
        "profiles/mine.yaml": (run / "profiles" / "bits-3.5.yaml").read_text(),
        "profiles/notes.yaml": "precious",
        "profiles/notes.txt": "precious",
        "scores/notes.json": "precious",
        "refits/bits-3.5/notes.safetensors": "precious",
    }
    old = {
        "profiles/bits-9.yaml": "format_version: 1\nbudget: bits 9\n",
        "refits/bits-9/block-000.safetensors": "levels",
        "refits/bits-9/manifest.json": "{}",
        "scores/model-01234567.json": "{}",
        ".front.json.17.01234567.part": "half",
    }
    for name, text in {**theirs, **old}.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    answer = shell("search", finished.config, "--run", run, "--fresh")
    assert answer.code == 0, answer.err
    assert {name: (run / name).read_text() for name in theirs} == theirs
    assert not any((run / name).exists() for name in old)
    assert not (run / "refits" / "bits-9").exists()


def export(run: Path, output: Path, *options: str | Path) -> tuple[str | Path, ...]:
    return ("export", run, "--point", "1", "--no-measure", "--output", output, *options)


def test_an_export_never_touches_what_it_reads(run: Path, tiny: Tiny, tmp_path: Path) -> None:
    """The model in the run's configuration lies inside the folder of an earlier export."""
    output = tmp_path / "out"
    assert shell(*export(run, output)).code == 0
    shutil.copytree(tiny.model, output / "src")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(tiny.model), str(output / "src")))
    model = output / "src"
    for place, relation in (
        (output, f"holds the model, {model}"),
        (model, f"is the model, {model}"),
        (model / "sub", f"lies in the model, {model}"),
        (run, f"is the run, {run}"),
        (run / "model", f"lies in the run, {run}"),
        (run.parent, "holds the l"),
        (run.parent / "databases", "holds the levels, "),
        (run.parent / "databases" / "more", "lies in the level databases, "),
    ):
        line = refused(tmp_path, *export(run, place, "--overwrite"))
        assert line.startswith(f"{place} {relation}"), line
        assert line.endswith(", which the export reads; choose another folder")


def plain_file(folder: Path) -> Path:
    (folder / "thesis.tex").write_text("years")
    return folder / "thesis.tex"


def link_for_a_listed_file(folder: Path) -> Path:
    (folder / "config.json").rename(folder.parent / "config.json")
    (folder / "config.json").symlink_to(folder.parent / "config.json")
    return folder / "config.json"


def empty_folder(folder: Path) -> Path:
    (folder / "chapters").mkdir()
    return folder / "chapters"


@pytest.mark.parametrize("add", [plain_file, link_for_a_listed_file, empty_folder])
def test_overwriting_refuses_an_export_with_other_files(
    add: Callable[[Path], Path], run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert shell(*export(run, output)).code == 0
    assert shell(*export(run, output, "--overwrite")).code == 0
    other = add(output)
    line = refused(tmp_path, *export(run, output, "--overwrite"))
    assert line == f"{other} is no file of the export at {output}; move it away, or choose another folder"


def test_overwriting_believes_only_a_record_that_lists_files(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert shell(*export(run, output)).code == 0
    record = json.loads((output / "paretopress.json").read_text())
    assert set(record["files"]) == {path.name for path in output.iterdir()}
    (tmp_path / "precious").write_text("years")
    (output / "paretopress.json").write_text(
        json.dumps(record | {"files": [*record["files"], "../precious"]})
    )
    assert shell(*export(run, output, "--overwrite")).code == 0
    assert (tmp_path / "precious").read_text() == "years"
    del record["files"]
    (output / "paretopress.json").write_text(json.dumps(record))
    assert "does not list the files of its export" in refused(tmp_path, *export(run, output, "--overwrite"))
    (tmp_path / "link").symlink_to(output)
    assert "link is a link; choose a folder" in refused(
        tmp_path, *export(run, tmp_path / "link", "--overwrite")
    )


def test_import_replaces_only_profile_files(tmp_path: Path) -> None:
    file, output = tmp_path / "bits.txt", tmp_path / "profile.yaml"
    file.write_text("model.layers.0.mlp.up_proj: 3\n")
    command = ("import", file, "--output")
    assert shell(*command, output).code == 0
    assert "exists already; give another name, or replace it with --overwrite" in refused(
        tmp_path, *command, output
    )
    assert shell(*command, output, "--overwrite").code == 0
    (tmp_path / "link").symlink_to(output)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name, message in (
        ("link", "is a link"),
        ("dangling", "is a link"),
        ("/dev/null", "is a device"),
        (".", "is a folder"),
        ("bits.txt", "is no profile file, so it is not replaced"),
    ):
        assert message in refused(tmp_path, *command, tmp_path / name, "--overwrite")
    output.chmod(0o444)
    assert "is write-protected" in refused(tmp_path, *command, output, "--overwrite")


def damaged(run: Path) -> Path:
    """The file of some levels, one bit of which is turned."""
    (file,) = run.parent.rglob("databases/*/block-001.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("command", ["export", "evaluate", "refit", "search"])
def test_damaged_levels_are_noticed_by_whoever_reads_them(command: str, run: Path, tmp_path: Path) -> None:
    file = damaged(run)
    arguments = {
        "export": export(run, tmp_path / "out"),
        "evaluate": ("evaluate", run / "profiles" / "bits-3.5.yaml"),
        "refit": ("refit", run),
        "search": ("search", run / "config.yaml", "--run", run),
    }[command]
    answer = shell(*arguments)
    assert answer.code == 2
    last = answer.err.splitlines()[-1]
    assert (
        f"{file.name} does not match its checksum; remove it and {file.name}.json, then build again" in last
    )
    assert not (tmp_path / "out").exists()
