"""The comparison of single kinds of compression with all of them together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.methods.joint import compare, refusal, stages
from benchmarks.methods.joint_rows import JOINT, SEEDED, infeasible, table, verdicts
from benchmarks.methods.joint_spaces import KINDS, Kind, as_joint, mix, only
from paretopress.search.run.configuration import load_config, parse_config
from paretopress.spaces.budget import BudgetConfig
from paretopress.spaces.configuration import SpaceConfig
from paretopress.spaces.construction import build_space
from paretopress.spaces.model.checkpoint import Checkpoint
from paretopress.spaces.model.structure import find_structure
from paretopress.spaces.space import Space
from tests.end_to_end.tiny import save_tiny, tiny_config, write_text

pytestmark = pytest.mark.slow

CONFIG = Path("configs/benchmarks/joint.yaml")


def space(config: SpaceConfig) -> Space:
    checkpoint = Checkpoint("configs/quickstart-model")
    skeleton = checkpoint.skeleton()
    parameters = {name: parameter.numel() for name, parameter in skeleton.named_parameters()}
    return build_space(find_structure(skeleton), config, parameters=parameters, dense_bits=16)


JOINT_CONFIG = load_config(CONFIG).space
JOINT_SPACE = space(JOINT_CONFIG)
SPACES = {kind: space(only(kind, JOINT_CONFIG)) for kind in KINDS}


def test_each_kind_has_its_levels() -> None:
    assert only("bits", JOINT_CONFIG).levels == ("w2g128", "w3g128", "w4g128", "w5g128", "w6g128", "dense")
    assert only("sparsity", JOINT_CONFIG).levels == ("s60", "s70", "s80", "s90", "s95", "dense")
    assert only("drop", JOINT_CONFIG).levels == ()
    assert [only(kind, JOINT_CONFIG).drop for kind in KINDS] == ["none", "none", "branches"]
    for lacking in ({"levels": ("w4",)}, {"drop": "none"}):
        with pytest.raises(ValueError, match="does not contain its parts; add both"):
            only("bits", JOINT_CONFIG.model_copy(update=lacking))


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_the_joint_space_contains_every_profile_of_a_single_kind(kind: Kind, seed: int) -> None:
    rng = np.random.default_rng(seed)
    own = SPACES[kind]
    profile = tuple(int(rng.integers(len(unit.levels))) for unit in own.units)
    joint = JOINT_SPACE.parse(as_joint(own.describe(profile), JOINT_SPACE))
    assert JOINT_SPACE.assignment(joint) == own.assignment(profile)
    assert JOINT_SPACE.key(joint) == own.key(profile)
    for cost in ("bits", "bytes", "parameters", "macs"):
        assert JOINT_SPACE.cost(joint, cost) == own.cost(profile, cost)


def test_bits_alone_save_no_multiplications_and_the_others_meet_both_limits() -> None:
    both = BudgetConfig(bits=3.25, macs=0.8)
    assert refusal(BudgetConfig(bits=3.25), SPACES["bits"]) == ""
    assert refusal(both, SPACES["bits"]) == "macs can be 1 to 1"
    assert [refusal(both, SPACES[kind]) for kind in ("sparsity", "drop")] == ["", ""]
    assert refusal(both, JOINT_SPACE) == ""
    assert refusal(BudgetConfig(bits=2.0), SPACES["bits"]).startswith("bits can be 2.125 to 16")
    assert refusal(BudgetConfig(bits=2.0), JOINT_SPACE) == ""


def test_budgets_come_with_one_limit_and_then_with_two() -> None:
    found = {name: [budget.name for budget in budgets] for name, budgets in stages([2, 3.25], 0.8).items()}
    assert found == {
        "bits": ["bits 2", "bits 3.25"],
        "bits-macs": ["bits 2, macs 0.8", "bits 3.25, macs 0.8"],
    }


def test_mix_is_in_shares_of_weights() -> None:
    weights = {"blocks.0.mlp": 60, "up": 40, "down": 20, "blocks.0.attention": 40}
    joint = {"blocks.0.mlp": "keep", "up": "w4", "down": "s80", "blocks.0.attention": "drop"}
    assert mix(joint, weights) == {"w4": 0.4, "drop": 0.4, "s80": 0.2}
    assert mix({"blocks.0.mlp": "keep", "blocks.0.attention": "drop"}, weights) == {"dense": 0.6, "drop": 0.4}
    assert mix({"up": "w4", "down": "dense"}, weights) == {"w4": 2 / 3, "dense": 1 / 3}


def row(budget: str, name: str, kl: float) -> dict[str, Any]:
    return {
        "budget": budget,
        "space": name,
        "feasible": True,
        "heldout_kl": kl,
        "heldout_interval": [kl - 0.01, kl + 0.01],
        "heldout_perplexity": 9.0,
        "calibration_kl": kl,
        "uniform_kl": 1.0,
        "bits": 3.2,
        "macs": 0.75,
        "tokens": 2_000_000,
        "winner": "frontier",
        "mix": {"w3": 0.75, "drop": 0.25},
    }


def test_verdicts_compare_the_seeded_run_with_the_best_single_kind() -> None:
    rows = [
        infeasible("a", "bits", "macs can be 1 to 1"),
        row("a", "sparsity", 0.5),
        row("a", "drop", 0.8),
        row("a", JOINT, 0.45),
        row("a", SEEDED, 0.4),
        row("b", "bits", 0.2),
        row("b", SEEDED, 0.25),
        row("c", "bits", 0.2),
        row("c", SEEDED, 0.2),
        infeasible("d", "bits", "too dear"),
        row("d", SEEDED, 0.3),
        infeasible("e", SEEDED, "too dear"),
    ]
    assert verdicts(rows) == [
        "a: joint 0.4000, best single kind (sparsity) 0.5000: held-out KL 20.0% lower; infeasible: bits",
        "b: joint 0.2500, best single kind (bits) 0.2000: held-out KL 25.0% HIGHER",
        "c: joint 0.2000, best single kind (bits) 0.2000: held-out KL the same",
        "d: only the joint space is feasible, held-out KL 0.3000",
        "e: not even the joint space is feasible",
    ]
    lines = table(rows).splitlines()
    assert lines[2] == "| a | bits | infeasible: macs can be 1 to 1 " + "| " * 9 + "|"
    assert lines[3].endswith("| 3.2000 | 0.7500 | 2.00 M | frontier | w3 75.0%, drop 25.0% |")
    assert {line.count("|") for line in lines} == {13}


def test_joint_is_never_worse_on_calibration_text_and_its_export_is_the_winner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_text(tmp_path / "text.jsonl")
    model = save_tiny(tmp_path / "model", text)
    levels = ["w2g16", "w4g16", "s80", "s90", "2:4+w4g16", "dense"]
    content = tiny_config(
        model, text, space={"levels": levels, "drop": "branches"}, search=[{"method": "dp", "errors": "nmse"}]
    )
    rows = compare(parse_config(content, "test"), stages([3.5], 0.8), tmp_path / "out")
    by_name: Mapping[tuple[str, str], dict[str, Any]] = {(r["budget"], r["space"]): r for r in rows}
    assert len(by_name) == len(rows) == 10
    both = "bits 3.5, macs 0.8"
    assert [key for key, found in by_name.items() if not found["feasible"]] == [(both, "bits")]
    for budget in ("bits 3.5", both):
        seeded = by_name[budget, SEEDED]
        single = [by_name[budget, kind] for kind in KINDS if by_name[budget, kind]["feasible"]]
        assert seeded["calibration_kl"] <= min(found["calibration_kl"] for found in single)
        assert seeded["tokens"] > sum(found["tokens"] for found in single)
        assert all(found["bits"] <= 3.5 for found in single)
    assert by_name[both, SEEDED]["macs"] <= 0.8
    printed = capsys.readouterr().out
    assert "exported, by transformers" in printed
    assert (tmp_path / "out" / "results.md").read_text().strip() in printed
