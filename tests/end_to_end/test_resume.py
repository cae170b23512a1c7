"""A run that is stopped, killed or damaged ends where an undisturbed one does."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import Driver, Tiny
from tests.end_to_end.tiny import FRONTIER, LENGTH, evolution

SEARCH = [
    {"method": "dp", "errors": "kl", "tokens": 2 * LENGTH},
    FRONTIER,
    evolution(3),
    {"method": "optuna", "trials": 6, "batch": 3, "tokens": 4 * LENGTH},
]
BUDGETS = [{"bits": 3.5}, {"bits": 4.5}]


def front_of(folder: Path) -> dict[str, Any]:
    """What a run concluded, without the time it took."""
    front: dict[str, Any] = json.loads((folder / "runs" / "tiny" / "front.json").read_text())
    del front["seconds"]
    return front


def measured(folder: Path) -> dict[tuple[str, str, int, int], tuple[float, float]]:
    """Model, data, order and position to value and cross-entropy; each was measured once."""
    found: dict[tuple[str, str, int, int], tuple[float, float]] = {}
    for line in (folder / "runs" / "tiny" / "journal.jsonl").read_text().splitlines()[1:]:
        _, key, data, seed, _, start, stop, values, entropies, *_ = json.loads(line[9:])
        for position, pair in zip(range(start, stop), zip(values, entropies, strict=True), strict=True):
            assert (key, data, seed, position) not in found
            found[key, data, seed, position] = pair
    return found


class Case:
    """One configuration, the run that nothing disturbs, and folders for others."""

    def __init__(self, driver: Driver, tiny: Tiny, folder: Path, **changes: Any) -> None:
        self.driver = driver
        self.config = tiny.config(folder, **{"search": SEARCH, "budgets": BUDGETS} | changes)
        self.folder = folder
        self.whole = self.make("whole")
        began = time.perf_counter()
        assert self.search(self.whole) == 0, (self.whole / "log").read_text()
        self.seconds = time.perf_counter() - began

    def make(self, name: str) -> Path:
        """An empty folder to run in."""
        (self.folder / name).mkdir()
        return self.folder / name

    def search(self, cwd: Path, *options: str, die_at: int | None = None) -> int:
        """The search command's exit code."""
        return self.driver.run("search", self.config, *options, cwd=cwd, die_at=die_at)

    def check(self, folder: Path) -> None:
        """The same front and the same measurements as without disturbance."""
        assert front_of(folder) == front_of(self.whole)
        assert measured(folder) == measured(self.whole)

    def kill_when(self, cwd: Path, ready: Callable[[], bool], number: signal.Signals) -> int:
        """Send a signal as soon as `ready`; the exit code."""
        pid = self.driver.start("search", self.config, cwd=cwd)
        deadline = time.monotonic() + 60
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(pid, number)
        return self.driver.wait(pid)


@pytest.fixture(scope="module")
def case(driver: Driver, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Case:
    found = Case(driver, tiny, tmp_path_factory.mktemp("resume"))
    assert len({look["tokens"] for look in front_of(found.whole)["looks"]}) > 2
    return found


def steps(folder: Path) -> int:
    """Steps in the checkpoint of a run."""
    path = folder / "runs" / "tiny" / "checkpoint.json"
    return int(json.loads(path.read_text())["progress"]["steps"]) if path.exists() else 0


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_signal_stops_with_advice(case: Case, number: signal.Signals) -> None:
    folder = case.make(number.name)
    assert case.kill_when(folder, lambda: steps(folder) >= 2, number) == 130
    last = (folder / "log").read_text().splitlines()[-1]
    assert last == (
        f"paretopress: stopped; runs/tiny keeps everything that was measured. "
        f"To continue: paretopress search {case.config}"
    )
    assert 2 <= steps(folder) < steps(case.whole)
    assert not (folder / "runs" / "tiny" / "front.json").exists()
    assert case.driver.run("status", "runs/tiny", cwd=folder) == 0
    status = (folder / "log").read_text()
    assert "runs/tiny: not finished; " in status
    following = status.splitlines()[-1].removeprefix("next: paretopress ").split()
    assert following == ["search", "runs/tiny/config.yaml", "--run", "runs/tiny"]
    assert case.driver.run(*following, cwd=folder) == 0, (folder / "log").read_text()
    case.check(folder)


@pytest.mark.slow
def test_killed_at_random_times(case: Case) -> None:
    folder, rng = case.make("times"), random.Random(1)
    kills, ends = 0, False
    while kills < 3:
        if ends:
            shutil.rmtree(folder / "runs")
            ends = False
        pid = case.driver.start("search", case.config, cwd=folder)
        time.sleep(rng.uniform(0.0, 0.6 * case.seconds))
        os.kill(pid, signal.SIGKILL)
        ends = case.driver.wait(pid) == 0
        kills += not ends
    assert case.search(folder) == 0, (folder / "log").read_text()
    case.check(folder)


def test_killed_at_random_file_operations(case: Case) -> None:
    """Where a kill could leave half a file: while one is opened for writing or takes its name."""
    folder, rng = case.make("operations"), random.Random(2)
    kills = 0
    for _ in range(100):
        if case.search(folder, die_at=rng.randint(1, 24)) != 0:
            kills += 1
        elif kills >= 8:
            break
        else:  # how many operations a run takes depends on how often its state is stored, so on the machine's speed
            case.check(folder)
            shutil.rmtree(folder / "runs")
    assert kills >= 8
    case.check(folder)


def test_killed_at_each_file_operation_of_the_build(case: Case) -> None:
    folder = case.make("build")
    before = set[int]()
    for operation in range(1, 40, 2):
        shutil.rmtree(folder / "runs", ignore_errors=True)
        assert case.driver.run("build", case.config, cwd=folder, die_at=operation) in (0, -signal.SIGKILL)
        before.add(len(list(folder.rglob("block-*.safetensors"))))
        if operation % 4 == 1:
            assert case.driver.run("build", case.config, cwd=folder) == 0, (folder / "log").read_text()
            (database,) = (folder / "runs" / "databases").iterdir()
            for path in sorted(database.glob("*.safetensors")):
                whole = case.whole / "runs" / "databases" / database.name / path.name
                assert path.read_bytes() == whole.read_bytes()
        if len(before) == 3:
            break
    assert before == {0, 1, 2}


def test_the_token_limit_holds_and_may_be_raised(
    driver: Driver, tiny: Tiny, tmp_path: Path, case: Case
) -> None:
    whole = front_of(case.whole)
    most = (whole["tokens"] + whole["teacher_tokens"]) // 2
    limited = Case(driver, tiny, tmp_path, stop={"max_tokens": most})
    front = front_of(limited.whole)
    spent = front["tokens"] + front["teacher_tokens"]
    assert most - 12 * 8 * LENGTH < spent <= most
    folder, rng = limited.make("killed"), random.Random(3)
    while limited.search(folder, die_at=rng.randint(10, 40)) != 0:
        pass
    limited.check(folder)
    assert limited.search(folder, "--set", "stop.max_tokens=null") == 0, (folder / "log").read_text()
    assert front_of(folder)["points"] == whole["points"]
    assert front_of(folder) == whole


@pytest.mark.slow
def test_a_search_that_looks_have_ended_may_go_on(driver: Driver, tiny: Tiny, tmp_path: Path) -> None:
    alone = {"search": [evolution(20)], "budgets": [{"bits": 3.5}]}
    (tmp_path / "on").mkdir()
    (tmp_path / "end").mkdir()
    whole = front_of(Case(driver, tiny, tmp_path / "on", **alone, stop={"looks": None}).whole)
    ended = Case(driver, tiny, tmp_path / "end", **alone, stop={"looks": 1})
    front = front_of(ended.whole)
    assert (front["stopped"], whole["stopped"]) == ("looks", None)
    assert front["tokens"] < whole["tokens"]
    assert "stopped by `stop`: looks, after" in (ended.whole / "log").read_text()
    folder, rng = ended.make("killed"), random.Random(4)
    while ended.search(folder, die_at=rng.randint(10, 40)) != 0:
        pass
    ended.check(folder)
    assert ended.search(folder, "--set", "stop.looks=null") == 0, (folder / "log").read_text()
    assert front_of(folder) == whole


def test_a_limit_below_the_first_step_leaves_the_baselines(
    driver: Driver, tiny: Tiny, tmp_path: Path
) -> None:
    nothing = Case(driver, tiny, tmp_path, stop={"max_tokens": 1})
    front = front_of(nothing.whole)
    assert (front["tokens"], front["teacher_tokens"], front["evaluations"]) == (0, 0, 0)
    assert [point["method"] for point in front["points"]] == ["uniform", "uniform"]


def test_a_second_process_is_refused(case: Case) -> None:
    folder = case.make("busy")
    pid = case.driver.start("search", case.config, cwd=folder)
    deadline = time.monotonic() + 60
    while steps(folder) < 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(pid, signal.SIGSTOP)
    (folder / "other").mkdir()
    code = case.driver.run("search", case.config, "--run", folder / "runs" / "tiny", cwd=folder / "other")
    os.kill(pid, signal.SIGCONT)
    assert case.driver.wait(pid) == 0
    said = (folder / "other" / "log").read_text().splitlines()
    assert code == 2
    assert said[-1].startswith(
        f"paretopress: run {folder}/runs/tiny is in use by process {pid} on host {os.uname().nodename}; "
    )
    case.check(folder)


def test_a_changed_configuration_is_refused(case: Case) -> None:
    before = {
        path: path.read_bytes() for path in case.whole.rglob("*") if path.is_file() and path.name != "log"
    }
    code = case.search(case.whole, "--set", "seed=1", "--set", "data.length=32")
    last = (case.whole / "log").read_text().splitlines()[-1]
    assert code == 2
    assert last.startswith(
        "paretopress: run runs/tiny was started with another configuration (seed: 0 -> 1; "
    )
    assert "data.length: 64 -> 32" in last
    after = {
        path: path.read_bytes() for path in case.whole.rglob("*") if path.is_file() and path.name != "log"
    }
    assert after == before


def test_other_text_behind_the_same_name_is_refused(driver: Driver, tiny: Tiny, tmp_path: Path) -> None:
    text = tmp_path / "mine.jsonl"
    shutil.copy(tiny.text, text)
    content = tiny.content()
    content["data"]["source"] = str(text)
    case = Case(driver, tiny, tmp_path, data=content["data"], search=[evolution(1)], budgets=[{"bits": 4.0}])
    text.write_text("".join(text.read_text().splitlines(keepends=True)[3:]))
    assert case.search(case.whole) == 2
    said = (case.whole / "log").read_text().splitlines()[-1]
    assert said.startswith("paretopress: run runs/tiny was made with another ")
    assert "another calibration" in said
    assert "--fresh" in said
    assert case.search(case.whole, "--fresh") == 0


def damage(path: Path, number: int) -> None:
    """Change one digit of a value in one line."""
    lines = path.read_bytes().split(b"\n")
    line = bytearray(lines[number])
    at = line.index(b"[", 80) + 4
    line[at] = ord("1") if line[at] != ord("1") else ord("2")
    lines[number] = bytes(line)
    path.write_bytes(b"\n".join(lines))


@pytest.mark.parametrize("when", ["in mid-search", pytest.param("at the end", marks=pytest.mark.slow)])
def test_damaged_lines_are_reported_and_measured_again(case: Case, when: str) -> None:
    folder = case.make(f"damaged {when}")
    journal = folder / "runs" / "tiny" / "journal.jsonl"
    if when == "at the end":
        assert case.search(folder) == 0
    else:
        case.kill_when(folder, lambda: steps(folder) >= 4, signal.SIGKILL)
    count = len(journal.read_bytes().splitlines())
    for number in (1, 3, count // 2):
        damage(journal, number)
    assert case.search(folder) == 0, (folder / "log").read_text()
    said = (folder / "log").read_text()
    assert "3 damaged lines skipped (line 2, 4, " in said
    assert front_of(folder) == front_of(case.whole)


def test_a_lost_checkpoint_costs_nothing(case: Case) -> None:
    folder = case.make("lost")
    case.kill_when(folder, lambda: steps(folder) >= 4, signal.SIGKILL)
    (folder / "runs" / "tiny" / "checkpoint.json").unlink()
    assert case.search(folder) == 0
    case.check(folder)


@pytest.mark.parametrize("harm", ["changed", pytest.param("missing", marks=pytest.mark.slow)])
def test_harm_to_a_level_file_is_noticed(case: Case, harm: str) -> None:
    folder = case.make(f"level {harm}")
    case.kill_when(folder, lambda: steps(folder) >= 1, signal.SIGKILL)
    (file,) = folder.rglob("block-001.safetensors")
    content = bytearray(file.read_bytes())
    if harm == "missing":
        file.unlink()
    else:
        content[-1] ^= 1
        file.write_bytes(content)
    assert case.search(folder) == 2
    last = (folder / "log").read_text().splitlines()[-1]
    assert (
        "block-001.safetensors does not match its checksum; remove it and block-001.safetensors.json" in last
    )
    file.unlink(missing_ok=True)
    file.with_name(f"{file.name}.json").unlink()
    assert case.search(folder) == 0
    case.check(folder)
