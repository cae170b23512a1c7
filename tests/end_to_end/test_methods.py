"""Every method and kind of space through the whole job, under the same rules."""

from pathlib import Path
from typing import Any

import pytest

from paretopress.evaluators.slopes.slope_trial import SlopeTrial
from paretopress.evaluators.trial import Trial
from paretopress.exporters.export import export_run
from paretopress.search.asking.calibration_sequences import slope_tokens
from paretopress.search.folder.runfolder import RunFolder
from paretopress.search.jobs import job
from paretopress.search.jobs.measure import measure_model
from paretopress.search.run.assembly import assemble
from paretopress.search.run.configuration import RunConfig, load_config
from paretopress.spaces.model.dense_model import DenseModel
from tests.architectures import core_first
from tests.end_to_end.conftest import Tiny
from tests.end_to_end.tiny import FRONTIER, LENGTH, evolution

METHODS: dict[str, list[dict[str, Any]]] = {
    "frontier": [FRONTIER],
    "frontier, measured": [FRONTIER | {"sensitivities": "measured"}],
    "evolution": [evolution(2)],
    "dp-nmse": [{"method": "dp", "errors": "nmse"}],
    "dp-kl": [{"method": "dp", "errors": "kl", "tokens": 2 * LENGTH, "rounds": 2}],
    "tpe": [{"method": "optuna", "sampler": "tpe", "trials": 8, "batch": 4}],
    "nsga2": [{"method": "optuna", "sampler": "nsga2", "trials": 8, "batch": 4}],
    "cmaes": [{"method": "optuna", "sampler": "cmaes", "trials": 8, "batch": 4}],
    "greedy": [{"method": "greedy", "tokens": 2 * LENGTH}],
    "random": [{"method": "random", "samples": 10}],
    "dp, evolution": [{"method": "dp", "errors": "kl", "tokens": 2 * LENGTH}, evolution(2)],
}
SPACES: dict[str, dict[str, Any]] = {
    "drop": {"space": {"drop": "branches"}, "budgets": [{"dropped": 2}]},
    "blocks": {"space": {"drop": "blocks"}, "budgets": [{"dropped": 1}]},
    "sparsity": {"space": {"levels": ["s30", "s50", "s70"]}, "budgets": [{"sparsity": 0.5}]},
    "ladder": {"space": {"ladder": {"base": 50, "step": 128, "levels": 4}}, "budgets": [{"sparsity": 0.5}]},
    "joint": {
        "space": {"levels": ["w3g16", "w4g16", "2:4+w4g16", "w6g16"], "drop": "branches"},
        "budgets": [{"bits": 4.5, "macs": 0.8}],
    },
    "minimum counts": {
        "space": {
            "levels": ["w3g16", "w4g16", "w6g16"],
            "drop": "branches",
            "at_least": [
                {"count": 1, "label": "keep", "units": "attention"},
                {"count": 2, "label": "w6g16", "units": "down_proj|o_proj"},
            ],
        },
        "budgets": [{"bits": 3.5}],
    },
    "tied, with ends, in bytes": {
        "space": {"levels": ["w3g16", "w4g16", "w6g16"], "units": {"tie": "vllm", "ends": True}},
        "budgets": [{"bytes": 22_000}, {"bytes": "25KB"}],
    },
}
TELLING = ("joint", "minimum counts", "tied, with ends, in bytes")
"""Spaces that hold all that the others do, except sparsities without quantization."""


def check_front(
    config: RunConfig, folder: Path, front: dict[str, Any], asked: list[Trial], *, within: bool
) -> None:
    """Exact limits in everything reported, in everything compared, and, `within`, in everything tried."""
    assembly = assemble(config, folder / "databases")
    space = assembly.space
    limits = {budget.name: limit for budget, limit in assembly.limits}
    assert [point["budget"] for point in front["points"]] == list(limits)
    for row in [*front["points"], *front["baselines"]]:
        assert space.fits(space.parse(row["profile"]), limits[row["budget"]])
        assert row["fitness"] is not None
        assert row["heldout_kl"] > 0
    for trial in asked:
        if (
            not isinstance(trial, SlopeTrial)
            and trial.fidelity.data == "calibration"
            and (within or trial.fidelity == assembly.archive_fidelity)
        ):
            assert any(space.fits(trial.profile, limit) for limit in limits.values())
    calibrated = sum(
        slope_tokens(space, t.fidelity) if isinstance(t, SlopeTrial) else t.fidelity.tokens
        for t in asked
        if t.fidelity.data == "calibration"
    )
    assert calibrated == front["tokens"]
    validated = sum(t.fidelity.tokens for t in asked if t.fidelity.data == "validation")
    assert validated == front["validation_tokens"]
    state = RunFolder(folder / config.name).read_checkpoint()
    assert state is not None
    assert state["finished"]


@pytest.mark.parametrize("method", METHODS)
def test_methods_keep_the_budget(method: str, tiny: Tiny, tmp_path: Path, asked: list[Trial]) -> None:
    config = load_config(tiny.config(tmp_path, search=METHODS[method]))
    front = job.run(config, tmp_path / "tiny").record()
    # These measure around profiles that are larger than the budget before they propose one that is not.
    within = not method.startswith(("frontier", "dp-kl", "dp,", "greedy"))
    check_front(config, tmp_path, front, asked, within=within)
    assert front["method"] == "+".join(part["method"] for part in METHODS[method])


@pytest.mark.parametrize("space", core_first(SPACES, TELLING))
def test_spaces_keep_their_budgets_and_are_exported(
    space: str, tiny: Tiny, tmp_path: Path, asked: list[Trial]
) -> None:
    search = [evolution(2, groups="none")] if space != "drop" else [evolution(2, initial=4)]
    config = load_config(tiny.config(tmp_path, search=search, **SPACES[space]))
    front = job.run(config, tmp_path / "tiny").record()
    check_front(config, tmp_path, front, asked, within=True)
    point = front["points"][-1]
    export_run(tmp_path / "tiny", tmp_path / "model", budget=point["budget"])
    found = measure_model(config, DenseModel.open(tmp_path / "model"), "heldout")
    assert found["perplexity"] == pytest.approx(point["heldout_perplexity"], rel=1e-6)


@pytest.mark.parametrize("space", core_first(SPACES, TELLING))
def test_frontier_searches_every_space(space: str, tiny: Tiny, tmp_path: Path, asked: list[Trial]) -> None:
    config = load_config(tiny.config(tmp_path, search=[FRONTIER], **SPACES[space]))
    front = job.run(config, tmp_path / "tiny").record()
    check_front(config, tmp_path, front, asked, within=False)
    assert len({trial.fidelity for trial in asked if trial.fidelity.data == "calibration"}) > 1


def test_baselines_do_not_depend_on_the_method(tiny: Tiny, tmp_path: Path) -> None:
    fronts = []
    for method in ("random", "dp-nmse"):
        config = load_config(tiny.config(tmp_path, search=METHODS[method], name=method))
        fronts.append(job.run(config, tmp_path / method).record())
    assert fronts[0]["baselines"] == fronts[1]["baselines"]
    assert fronts[0]["dense"] == fronts[1]["dense"]


def test_a_method_starts_from_what_those_before_it_found(tiny: Tiny, tmp_path: Path) -> None:
    alone = job.run(load_config(tiny.config(tmp_path, search=METHODS["dp-kl"], name="one")), tmp_path / "one")
    both = job.run(
        load_config(tiny.config(tmp_path, search=[*METHODS["dp-kl"], evolution(3)], name="two")),
        tmp_path / "two",
    )
    best = [min(row.fitness for row in front.progress) for front in (alone, both)]
    assert best[1] <= best[0]
    assert (both.tokens or 0) > (alone.tokens or 0)
