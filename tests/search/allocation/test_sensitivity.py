import json
import math

import pytest

from paretopress.search.allocation.moves import Moves
from paretopress.search.allocation.sensitivity import Sensitivity, probes
from paretopress.spaces.space import Profile, Space
from tests.toys import ToyEvaluator, bits_limits, bits_space, joint_limits, joint_space


def measure(space: Space, base: Profile, evaluator: ToyEvaluator, *, near: bool = False) -> Sensitivity:
    measured = [(probe, evaluator.true(probe.profile)) for probe in probes(space, base, near=near)]
    return Sensitivity.of(space, base, 64, evaluator.true(base), measured)


def test_deltas_are_those_of_single_moves() -> None:
    space = bits_space(blocks=1)
    evaluator = ToyEvaluator(space)
    base = Moves(space, bits_limits(space)).dearest
    found = measure(space, base, evaluator)
    assert found.deltas["blocks.0.q"]["w6"] == 0.0
    expected = evaluator.true((0, 3, 3)) - evaluator.true((3, 3, 3))
    assert found.deltas["blocks.0.q"]["w2"] == expected


def test_units_under_a_dropped_branch_are_measured_with_it_kept() -> None:
    space = joint_space(blocks=1)
    evaluator = ToyEvaluator(space)
    base = (0, 2, 2, 1, 2)
    found = measure(space, base, evaluator)
    assert found.deltas["blocks.0.q"]["w2"] == pytest.approx(
        evaluator.true((1, 0, 2, 1, 2)) - evaluator.true((1, 2, 2, 1, 2))
    )
    assert found.deltas["blocks.0.attention"]["keep"] == pytest.approx(
        evaluator.true((1, 2, 2, 1, 2)) - evaluator.true(base)
    )


def test_probes_hold_one_base_and_make_profiles_when_asked() -> None:
    space = joint_space(blocks=1)
    base = (0, 2, 2, 1, 2)
    found = probes(space, base)
    assert all(probe.base is base for probe in found)
    profiles = {(probe.unit, probe.level): probe.profile for probe in found}
    assert profiles[0, 1] == (1, 2, 2, 1, 2)
    assert profiles[1, 0] == (1, 0, 2, 1, 2)
    assert profiles[4, 1] == (0, 2, 2, 1, 1)
    assert set(profiles) == {
        (u, n) for u, unit in enumerate(space.units) for n in range(len(unit.levels)) if n != base[u]
    }


def test_near_probes_are_single_steps() -> None:
    space = bits_space(blocks=1)
    base = (1, 1, 1)
    assert {p.level for p in probes(space, base, near=True)} == {0, 2}
    errors = measure(space, base, ToyEvaluator(space), near=True).errors(space)
    assert [e < math.inf for e in errors[0]] == [True, True, True, False]


def test_failed_measurements_are_worse_than_all_others() -> None:
    space = bits_space(blocks=1)
    base = (3, 3, 3)
    measured = [(p, math.inf if p.unit == 0 else 1.0) for p in probes(space, base)]
    errors = Sensitivity.of(space, base, 64, 0.5, measured).errors(space)
    assert max(errors[1]) < errors[0][0] < math.inf


def test_survives_a_file() -> None:
    space = joint_space()
    evaluator = ToyEvaluator(space)
    base = Moves(space, joint_limits(space)).dearest
    measured = [(p, math.inf if p.unit == 1 else evaluator.true(p.profile)) for p in probes(space, base)]
    record = Sensitivity.of(space, base, 64, evaluator.true(base), measured)
    assert Sensitivity.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_refuses_other_records() -> None:
    with pytest.raises(ValueError, match="record of sensitivities is incomplete"):
        Sensitivity.from_json({"base": {}})


def test_refuses_another_space() -> None:
    space = bits_space(blocks=1)
    record = measure(space, (3, 3, 3), ToyEvaluator(space))
    with pytest.raises(ValueError, match=r"unit 'blocks.1.q' has no sensitivity"):
        record.errors(bits_space(blocks=2))
