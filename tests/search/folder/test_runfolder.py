import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretopress.search.folder.front import Front, Point, Refit
from paretopress.search.folder.runfolder import RunFolder
from paretopress.search.folder.settings import differences
from paretopress.search.site.environment import environment
from paretopress.spaces.profile_file import ProfileFile, read_profile

HOLD = (
    "import sys; from pathlib import Path; from paretopress.search.folder.runfolder import RunFolder\n"
    "with RunFolder(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
)
CONFIG = {
    "model": "m",
    "search": {"method": "evolution", "seed": 0},
    "budgets": [{"bits": 3.25}],
    "log": {"every": 5},
}


def hold(path: Path) -> tuple[subprocess.Popen[str], IO[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    return process, process.stdin


def test_a_second_process_is_refused_with_the_first_ones_name(tmp_path: Path) -> None:
    process, stdin = hold(tmp_path / "run")
    name = f"run {tmp_path / 'run'} is in use by process {process.pid} on host {socket.gethostname()}"
    with pytest.raises(BlockingIOError, match=f"{name}; wait for it or stop it, or choose another"):
        RunFolder(tmp_path / "run").__enter__()
    stdin.close()
    assert process.wait() == 0
    with RunFolder(tmp_path / "run"):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    process, stdin = hold(tmp_path)
    process.kill()
    process.wait()
    stdin.close()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == process.pid
    with RunFolder(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text()) == {
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
    assert (tmp_path / ".lock").read_text() == ""


def test_the_lock_of_another_host_is_believed(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.write_text('{"host": "elsewhere", "pid": 7}')
    with pytest.raises(
        BlockingIOError, match=r"process 7 on host elsewhere \(this is .*\); if .* has ended, delete"
    ):
        RunFolder(tmp_path).__enter__()
    lock.unlink()
    with RunFolder(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", '{"host": "else'])
def test_a_half_written_name_is_nobodys(tmp_path: Path, content: str) -> None:
    (tmp_path / ".lock").write_text(content)
    with RunFolder(tmp_path), pytest.raises(BlockingIOError, match=f"process {os.getpid()} on host"):
        RunFolder(tmp_path).__enter__()


def test_an_error_inside_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunFolder(tmp_path):
        raise KeyError
    with RunFolder(tmp_path):
        pass


def test_reading_needs_no_lock_and_makes_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "none")
    assert folder.read_config() is folder.read_checkpoint() is folder.read_environment() is None
    assert folder.read_front() is None
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file; choose another name"):
        RunFolder(tmp_path / "file")


def test_everything_comes_back_and_carries_its_version(tmp_path: Path) -> None:
    state = {"best": float("inf"), "population": [[1, 2], [3]], "rng": {"state": 2**127}}
    profiles = {
        "3.25": ProfileFile({"blocks.0.mlp": "2:4+w4g128"}),
        "b": ProfileFile({"a": "w4"}, budget="c"),
    }
    with RunFolder(tmp_path / "a" / "run") as folder:
        folder.settle_config(CONFIG)
        folder.write_environment({"seed": 3})
        folder.write_checkpoint({"old": 1})
        folder.write_checkpoint(state)
        folder.write_front(Front(points=[]))
        folder.write_profiles({"b": ProfileFile({"a": "w3"})})
        folder.write_profiles(profiles)
        (folder.path / "report.html").write_text("<html>")
        folder.journal.write_text("")
        folder.refit("bits-3.25").mkdir(parents=True)
        (folder.refit("bits-3.25") / "manifest.json").write_text("{}")
    again = RunFolder(tmp_path / "a" / "run")
    assert again.read_config() == CONFIG
    assert again.read_environment() == {"seed": 3}
    assert again.read_checkpoint() == state
    assert again.read_front() == Front(points=[])
    assert {path.stem: read_profile(path) for path in (again.path / "profiles").iterdir()} == profiles
    versioned = ("config.yaml", "environment.json", "checkpoint.json", "front.json", "profiles/b.yaml")
    assert all("format_version" in (again.path / name).read_text() for name in versioned)
    assert {p.relative_to(again.path).as_posix() for p in again.path.rglob("*") if p.is_file()} == {
        *versioned,
        "profiles/3.25.yaml",
        "journal.jsonl",
        "report.html",
        "refits/bits-3.25/manifest.json",
        ".lock",
    }
    (again.path / "notes.txt").write_text("mine")
    (again.path / ".front.json.1.01234567.part").write_text("left by a killed process")
    with again:
        again.begin_anew({"model": "other"})
    assert again.read_config() == {"model": "other"}
    # Both profiles are somebody's: neither has the name of the budget that stands in it.
    assert {p.name for p in again.path.rglob("*") if p.is_file()} == {
        "notes.txt",
        ".lock",
        "config.yaml",
        "3.25.yaml",
        "b.yaml",
    }


def test_a_new_front_keeps_the_refit_of_a_point_that_it_finds_again(tmp_path: Path) -> None:
    point = Point(budget="bits 3", profile={"a": "w3", "b": "w4"})
    other = Point(budget="bits 3", profile={"a": "w4", "b": "w3"})
    more = Point(budget="bits 4", profile={})
    refitted = point.model_copy(update={"refit": Refit(kept=True)})
    newer = point.model_copy(update={"refit": Refit(kept=False)})
    with RunFolder(tmp_path) as folder:
        for points, expected in (
            ([refitted], [refitted]),
            ([point, more], [refitted, more]),
            ([newer], [newer]),
            ([other], [other]),
            ([point], [point]),
        ):
            assert folder.write_front(Front(points=points)) == Front(points=expected)
            assert folder.read_front() == Front(points=expected)
        (tmp_path / "front.json").write_text("damaged")
        folder.write_front(Front(points=[point]))
        assert folder.read_front() == Front(points=[point])


def test_a_front_keeps_what_another_release_wrote_and_names_what_is_wrong(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    newer = {"format_version": 1, "points": [{"budget": "bits 3", "cost": 3, "colour": "red"}], "more": [1]}
    (tmp_path / "front.json").write_text(json.dumps(newer))
    front = folder.read_front()
    assert front is not None
    assert {"format_version": 1, **front.record()} == newer
    for points, message in (
        ([{"cost": "3"}], r"front.json is damaged at points.0.cost.int: Input should be a valid integer"),
        (
            [{"cost": 3, "heldout_kl": True}],
            r"is damaged at points.0.heldout_kl.*; restore it, or run the search",
        ),
        (None, "is damaged at points: Input should be a valid list"),
    ):
        (tmp_path / "front.json").write_text(json.dumps({"format_version": 1, "points": points}))
        with pytest.raises(ValueError, match=message):
            folder.read_front()


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden", "x\n"])
def test_profiles_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    with RunFolder(tmp_path / "run") as folder, pytest.raises(ValueError, match="is not a plain file name"):
        folder.write_profiles({"good": ProfileFile({"a": "w4"}), name: ProfileFile({})})
    assert [p.name for p in tmp_path.rglob("*.yaml")] == []


def test_a_newer_or_foreign_file_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "front.json").write_text('{"format_version": 9}')
    with pytest.raises(
        ValueError, match=r"front.json has format_version 9, this release reads up to 1; upgrade"
    ):
        folder.read_front()
    (tmp_path / "checkpoint.json").write_text('{"format_ver')
    with pytest.raises(ValueError, match=r"checkpoint.json is not JSON at line 1 column 2"):
        folder.read_checkpoint()
    (tmp_path / "config.yaml").write_text("model: x")
    with pytest.raises(ValueError, match=r"config.yaml carries no format_version"):
        folder.settle_config(CONFIG)


def test_a_changed_configuration_is_refused_with_the_keys(tmp_path: Path) -> None:
    changed = {
        **CONFIG,
        "search": {"method": "dp", "seed": 0},
        "budgets": [{"bits": 3.0}],
        "data": {"length": 8},
    }
    del changed["model"]
    with RunFolder(tmp_path) as folder:
        folder.settle_config(CONFIG)
        folder.settle_config(json.loads(json.dumps(CONFIG)))
        with pytest.raises(ValueError, match="started with another configuration") as refused:
            folder.settle_config(changed, harmless={"log"})
        assert folder.read_config() == CONFIG
    for part in (
        'model: "m" -> (absent); search.method: "evolution" -> "dp"; ',
        'budgets: [{"bits": 3.25}] -> [{"bits": 3.0}]; data.length: (absent) -> 8)',
        "undo the change, choose another --run folder, or start over with --fresh",
    ):
        assert part in str(refused.value)
    assert "seed" not in str(refused.value)


def test_harmless_keys_may_change(tmp_path: Path) -> None:
    changed = {**CONFIG, "log": {"every": 6, "more": True}}
    with RunFolder(tmp_path) as folder:
        folder.settle_config(CONFIG)
        with pytest.raises(ValueError, match=r"\(log.every: 5 -> 6\)"):
            folder.settle_config(changed, harmless={"lo", "log.more"})
        folder.settle_config(changed, harmless={"log"})
        assert folder.read_config() == changed


trees: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
configs = st.dictionaries(st.sampled_from("abcd"), trees, max_size=4)


@given(configs, configs)
def test_differences_are_empty_only_for_equal_configurations(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    assert differences(first, first) == {}
    text = [json.dumps(config, sort_keys=True) for config in (first, second)]
    assert (differences(first, second) == {}) == (text[0] == text[1])
    assert differences(second, first) == {
        key: (new, old) for key, (old, new) in differences(first, second).items()
    }


@given(config=configs)
def test_a_stored_configuration_equals_itself(
    tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any]
) -> None:
    with RunFolder(tmp_path_factory.mktemp("run")) as folder:
        folder.settle_config(config)
        folder.settle_config(config)


def test_environment_is_json_and_loads_no_torch() -> None:
    record = environment()
    assert json.loads(json.dumps(record)) == record
    assert record["packages"]["numpy"]
    assert record["processors"] == os.cpu_count()
    code = (
        "import sys; from paretopress.search.site.environment import environment as e; import paretopress.search.folder.runfolder\n"
        "before = e(); assert 'torch' not in sys.modules and 'threads' not in before\n"
        "import torch; torch.set_num_threads(1); after = e(); assert after['threads'] == 1, after\n"
        "assert len(after['devices']) == torch.cuda.device_count()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_refits_stay_inside_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a plain file name"):
        RunFolder(tmp_path / "run").refit("../../elsewhere")


ELSEWHERE = """
import os, sys, types
from pathlib import Path
from paretopress.search.folder.runfolder import RunFolder
from paretopress.search.run.machine import cores
from paretopress.evaluators.journal.journal import Journal
from paretopress.evaluators.trial import Evaluation, Fidelity, Trial
sys.modules["fcntl"] = None
locked = []
def locking(descriptor, mode, count):
    if locked:
        raise PermissionError(13, "Permission denied")
    locked.append((mode, count))
sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
for name in ("sched_getaffinity", "O_CLOEXEC", "O_DIRECTORY", "pread", "pwrite"):
    delattr(os, name)
assert cores() == os.cpu_count()
with RunFolder(Path(sys.argv[1])) as folder:
    assert locked == [(2, 1)]
    folder.settle_config({"model": "m"})
    journal = Journal(folder.journal, 32 * "0")
    journal.append(32 * "1", Evaluation(Trial(0, (0,), Fidelity(0, 0, 1, 8)), (0.5,), (0.25,)))
    journal.close()
    try:
        RunFolder(Path(sys.argv[1])).__enter__()
    except BlockingIOError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_run_works_without_what_only_linux_has(tmp_path: Path) -> None:
    """As on Windows (no fcntl, no opening of folders) and macOS (no affinity)."""
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"run {tmp_path} is in use by process" in done.stdout
    assert (tmp_path / ".lock").read_text() == ""
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 2
