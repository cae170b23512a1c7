"""`paretopress sensitivities`: scores that are saved, reused, compared and allocated by."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from paretopress.evaluators.trial import Trial
from paretopress.search.allocation.sensitivity import Sensitivity
from paretopress.search.jobs import job
from paretopress.search.run.assembly import Assembly, assemble
from paretopress.search.run.configuration import load_config
from paretopress.search.run.event import Event
from paretopress.search.sensitivities import level_scores as scores
from paretopress.search.sensitivities import probing
from paretopress.search.sensitivities.sensitivities import SCORES, sensitivities
from paretopress.search.site import site
from tests.end_to_end.conftest import Answer, RecordingPool, Tiny, shell
from tests.end_to_end.test_bad_input import refused
from tests.end_to_end.tiny import LENGTH

BUDGETS: list[dict[str, Any]] = [{"bits": 3.5}, {"bits": 4.5}]
JOINT: dict[str, Any] = {"levels": ["w3g16", "w4g16", "s50"], "drop": "branches"}


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("sensitivities")
    tiny.config(found, budgets=BUDGETS)
    return found


@pytest.fixture(scope="module")
def answer(folder: Path) -> Answer:
    """What the command said with everything asked of it."""
    run = folder / "runs" / "tiny"
    return shell(
        "sensitivities",
        folder / "tiny.yaml",
        "--run",
        run,
        "--tokens",
        str(LENGTH),
        "--check",
        "--fitness",
        "0.3",
    )


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """What the workers are asked from now on."""
    found: list[Trial] = []
    monkeypatch.setattr(RecordingPool, "asked", found)
    monkeypatch.setattr(probing, "LocalPool", RecordingPool)
    monkeypatch.setattr(site, "LocalPool", RecordingPool)
    return found


def assembled(folder: Path) -> Assembly:
    return assemble(load_config(folder / "tiny.yaml"), folder / "runs" / "databases")


def saved(folder: Path, score: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (folder / "runs" / "tiny" / "sensitivities" / f"{score}.json").read_text()
    )
    return found


def test_everything_is_printed(answer: Answer, folder: Path) -> None:
    assert answer.code == 0, answer.err
    assert answer.err == ""
    rows = {line.split()[0]: line.split() for line in answer.out.splitlines() if line.startswith(SCORES)}
    assert list(rows) == list(SCORES)
    units, levels = 14, 4
    assert rows["kl"][1] == f"{(1 + 1 + units * (levels - 1)) * LENGTH:,}"
    assert rows["kl"][3:] == ["1.000", "1.000"]
    assert rows["nmse"][1] == rows["lamp"][1] == "0"
    assert rows["fisher"][1] == f"{4 * LENGTH}"
    for budget in ("bits 3.5", "bits 4.5"):
        assert sum(line.startswith(budget) for line in answer.out.splitlines()) == 1
    assert sum(line.startswith("fitness 0.3") for line in answer.out.splitlines()) == 1
    assert max(map(len, answer.out.splitlines()[-40:-2])) <= 80
    run = folder / "runs" / "tiny"
    assert answer.out.splitlines()[-1] == f"next: paretopress search {folder / 'tiny.yaml'} --run {run}"


def test_files_hold_the_scores_of_every_level(answer: Answer, folder: Path) -> None:
    assembly = assembled(folder)
    for score in SCORES:
        record = saved(folder, score)
        assert record["settings"]["model"] == assembly.checkpoint.fingerprint
        assert record["settings"]["levels"] == assembly.database.fingerprint
        found = Sensitivity.from_json(record["sensitivity"])
        errors = found.errors(assembly.space)
        assert all(math.isfinite(e) for row in errors for e in row), score
        assert all(row[0] > row[-1] for row in errors), score


def test_fisher_ranks_levels_as_measured(answer: Answer) -> None:
    row = next(line.split() for line in answer.out.splitlines() if line.startswith("fisher"))
    assert float(row[3]) > 0.9


def test_profiles_fit_and_are_measured(answer: Answer, folder: Path) -> None:
    assembly = assembled(folder)
    profiles = folder / "runs" / "tiny" / "sensitivities" / "profiles"
    for budget, limits in assembly.limits:
        for score in ("uniform", *SCORES):
            name = f"{budget.name.replace(' ', '-')}_{score}.yaml"
            record = yaml.safe_load((profiles / name).read_text())
            profile = assembly.space.parse(record["units"])
            assert assembly.space.fits(profile, limits)
            assert record["costs"] == assembly.space.costs(profile)
    found = shell(
        "evaluate", profiles / "bits-3.5_kl.yaml", "--config", folder / "tiny.yaml",
        "--run", folder / "runs" / "tiny", "--data", "calibration",
    )  # fmt: skip
    assert found.code == 0, found.err


def test_the_same_command_measures_nothing_again(
    answer: Answer, folder: Path, recorded: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("a score was made again")

    monkeypatch.setattr(scores, "proxy_errors", never)
    config = load_config(folder / "tiny.yaml")
    first = sensitivities(config, folder / "runs" / "tiny", tokens=LENGTH, check=True)
    beside = sensitivities(config, folder / "runs" / "beside", tokens=LENGTH, check=True)
    assert not recorded
    assert all(row.reused for row in (*first.scored, *beside.scored))
    assert [a.fitness for a in first.allocations] == [a.fitness for a in beside.allocations]
    assert (folder / "runs" / "beside" / "sensitivities" / "fisher.json").read_bytes() == (
        folder / "runs" / "tiny" / "sensitivities" / "fisher.json"
    ).read_bytes()


def test_searches_use_what_was_measured(
    answer: Answer, folder: Path, tiny: Tiny, recorded: list[Trial]
) -> None:
    config = tiny.config(
        folder / "dp", budgets=BUDGETS, search=[{"method": "dp", "tokens": LENGTH}], archive_tokens=LENGTH
    )
    job.run(load_config(config), folder / "runs" / "dp")
    probed = [trial for trial in recorded if trial.fidelity.data == "calibration"]
    assert len({trial.profile for trial in probed}) < 14


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"tokens": 2 * LENGTH}, {"kl"}),
        ({"tokens": 8 * LENGTH}, {"kl", "fisher", "owl", "influence"}),
        ({"base": "uniform", "tokens": LENGTH}, {"kl"}),
        ({"base": (2,) * 14, "tokens": LENGTH}, {"kl"}),
    ],
    ids=["tokens", "tokens of the proxies too", "base", "base as a profile"],
)
def test_other_settings_are_measured_anew(
    change: dict[str, Any], again: set[str], answer: Answer, folder: Path, tmp_path: Path
) -> None:
    databases = folder / "runs" / "databases"
    here = tmp_path / "runs" / "tiny" / "sensitivities"
    here.mkdir(parents=True)
    (here.parent / ".lock").touch()
    for score in SCORES:
        (here / f"{score}.json").write_bytes(
            (folder / "runs" / "tiny" / "sensitivities" / f"{score}.json").read_bytes()
        )
    config = load_config(folder / "tiny.yaml")
    found = sensitivities(config, tmp_path / "runs" / "tiny", databases=databases, **change)
    assert {row.score for row in found.scored if not row.reused} == again


@pytest.mark.parametrize("score", ["fisher", "lamp"])
def test_a_proxy_needs_no_run(score: str, answer: Answer, folder: Path, tmp_path: Path) -> None:
    here = tmp_path / "run" / "sensitivities"
    told: list[Event] = []
    made = scores.stored_proxy(score, assembled(folder), here, LENGTH, told.append)
    assert [(event.stage, event.done) for event in told] == [(f"score {score}", 0), (f"score {score}", 1)]
    assert made.sensitivity.to_json() == saved(folder, score)["sensitivity"]
    assert (made.tokens, made.reused) == (saved(folder, score)["tokens"], False)
    again = scores.stored_proxy(score, assembled(folder), here, LENGTH, told.append)
    assert len(told) == 2
    assert again == replace(made, reused=True)


def test_damaged_files_beside_are_passed_over(answer: Answer, folder: Path, tmp_path: Path) -> None:
    beside, here = tmp_path / "a" / "sensitivities", tmp_path / "b" / "sensitivities"
    beside.mkdir(parents=True)
    (beside / "nmse.json").write_text("{")
    assembly = assembled(folder)
    assert not scores.stored_proxy("nmse", assembly, here, LENGTH).reused
    with pytest.raises(ValueError, match=r"nmse\.json is not JSON"):
        scores.stored_proxy("nmse", assembly, beside, LENGTH)


def test_embeddings_have_fisher_scores_too(tiny: Tiny, tmp_path: Path) -> None:
    space = {"levels": ["w3g16", "w4g16"], "units": {"ends": True}}
    config = load_config(tiny.config(tmp_path, space=space))
    found = sensitivities(config, tmp_path / "run", scores=("fisher",))
    (row,) = found.scored
    ends = [unit for unit in found.assembly.space.units if unit.block < 0]
    for unit in ends:
        deltas = row.sensitivity.deltas[unit.name]
        assert deltas["w3g16"] > deltas["w4g16"] > 0
    assert ends


def test_progress_counts_what_is_measured_and_nothing_else(tiny: Tiny, tmp_path: Path) -> None:
    config = load_config(tiny.config(tmp_path, budgets=BUDGETS))

    def told(stage: str, *wanted: str, check: bool) -> list[Event]:
        found: list[Event] = []
        run = tmp_path / "runs" / "tiny"
        sensitivities(config, run, scores=wanted, tokens=LENGTH, check=check, listen=found.append)
        return [event for event in found if event.stage == stage]

    measured = told("score kl", "kl", check=False)
    assert measured[0] == Event("score kl", 0, (1 + 14 * 3) * LENGTH)
    assert measured[-1].done == measured[-1].total
    stage = "check the allocations"
    first, second = (told(stage, *wanted, check=True) for wanted in (["kl"], ["kl", "magnitude"]))
    archive = first[1].done
    for events, profiles in ((first, 4), (second, 2)):
        assert events[0] == Event(stage, 0, profiles * archive)
        assert [event.done for event in events] == [n * archive for n in range(profiles + 1)]
    assert not told(stage, "kl", "magnitude", check=True)


def test_a_bound_on_fitness_keeps_minimum_counts(tiny: Tiny, tmp_path: Path) -> None:
    space = {"levels": ["w3g16", "w4g16"], "at_least": [{"count": 11, "label": "w4g16"}]}
    config = load_config(tiny.config(tmp_path, space=space, budgets=[{"bits": 5.0}]))
    found = sensitivities(config, tmp_path / "runs" / "tiny", scores=["kl"], tokens=LENGTH, bound=10.0)
    assert found.within is not None
    labels = list(found.assembly.space.labels(found.within.profile))
    assert labels.count("w4g16") == 11
    differing = [{"bits": 4.5}, {"bits": 5.0, "macs": 0.7}]
    config = load_config(tiny.config(tmp_path, space=JOINT, budgets=differing))
    with pytest.raises(ValueError, match="needs budgets that differ in bits only, not bits 4.5; bits 5"):
        sensitivities(config, tmp_path / "runs" / "other", scores=["kl"], bound=10.0)
    assert not (tmp_path / "runs" / "other").exists()


def test_joint_spaces_have_all_scores(tiny: Tiny, tmp_path: Path) -> None:
    config = load_config(
        tiny.config(tmp_path, space=JOINT, budgets=[{"bits": 4.0}, {"bits": 4.5, "macs": 0.7}])
    )
    found = sensitivities(config, tmp_path / "runs" / "joint", tokens=LENGTH, check=True)
    space = found.assembly.space
    for row in found.scored:
        for unit in space.units:
            deltas = row.sensitivity.deltas[unit.name]
            assert deltas.keys() == unit.index.keys()
            if unit.droppable:
                assert deltas["drop"] > deltas["keep"] == 0.0, row.score
    for allocation in found.allocations:
        limits = next(limit for budget, limit in found.assembly.limits if budget.name == allocation.budget)
        assert space.fits(allocation.profile, limits)
        assert allocation.fitness is not None
        assert math.isfinite(allocation.fitness)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--scores", "kl,fischer"],
            "score 'fischer' is unknown; did you mean 'fisher'? known: fisher, influence, kl, ",
        ),
        (["--scores", "nmse", "--fitness", "0.1"], "a bound on fitness needs the measured score; add kl"),
        (["--scores", ","], "no score is given; known: kl, fisher, "),
        (["--base", "worst"], "Invalid value for '--base'"),
        (["--tokens", "0"], "Invalid value for '--tokens'"),
    ],
)
def test_bad_input(
    arguments: list[str], message: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(tmp_path, "sensitivities", tiny.config(tmp_path), *arguments)


def test_a_fitness_that_cannot_be_reached(answer: Answer, folder: Path) -> None:
    config, run = folder / "tiny.yaml", folder / "runs" / "tiny"
    found = shell(
        "sensitivities", config, "--run", run, "--tokens", str(LENGTH), "--scores", "kl", "--fitness", "1e-9"
    )
    assert found.code == 2
    assert found.err.startswith("paretopress: fitness 1e-09 cannot be reached: the best profile is predicted")
