import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.evaluators.trial import Evaluation, Fidelity, Trial
from paretopress.search.study.archive import ParetoArchive
from paretopress.spaces.space import Space
from paretopress.spaces.unit import Level, Unit
from tests.toys import CALIBRATION, joint_limits, joint_space

COSTS = [3, 1, 4, 1, 5, 9, 2, 6]


def one_unit() -> Space:
    levels = tuple(Level(f"w{n % 7 + 2}g{n + 1}", {"bits": cost}) for n, cost in enumerate(COSTS))
    return Space((Unit("u", ("u",), 0, "mlp", levels),))


def answer(level: int, fitness: float) -> Evaluation:
    return Evaluation(Trial(0, (level,), CALIBRATION.archive), (fitness,), (1.0,))


answers = st.lists(
    st.builds(answer, st.integers(0, len(COSTS) - 1), st.integers(0, 6).map(float)), max_size=20
)


def filled(evaluations: list[Evaluation]) -> ParetoArchive:
    archive = ParetoArchive(one_unit(), "bits", CALIBRATION.archive)
    archive.add(evaluations)
    return archive


@given(answers)
def test_the_front_is_what_nothing_dominates(evaluations: list[Evaluation]) -> None:
    archive = filled(evaluations)
    points = {(e.cost, e.fitness) for e in archive.entries}
    undominated = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    front = [(e.cost, e.fitness) for e in archive]
    assert front == sorted(undominated)
    assert len(archive) == len(undominated)


@given(answers, st.integers(0, 10))
def test_the_best_is_the_lowest_within_the_limit(evaluations: list[Evaluation], limit: int) -> None:
    archive = filled(evaluations)
    values = [e.fitness for e in archive.entries if e.cost <= limit]
    best = archive.best(limit)
    assert (best.fitness if best else None) == min(values, default=None)


@given(answers, st.integers(1, 12), st.integers(1, 8))
def test_hypervolume_counts_the_dominated_cells(
    evaluations: list[Evaluation], cost: int, fitness: int
) -> None:
    archive = filled(evaluations)
    cells = [
        cell
        for cell in itertools.product(range(cost), range(fitness))
        if any(e.cost <= cell[0] and e.fitness <= cell[1] for e in archive.entries)
    ]
    assert archive.hypervolume((cost, fitness)) == len(cells)


@settings(max_examples=40)
@given(answers.flatmap(lambda found: st.tuples(st.just(found), st.permutations(found))))
def test_the_front_does_not_depend_on_the_order(pair: tuple[list[Evaluation], list[Evaluation]]) -> None:
    first: dict[int, Evaluation] = {}
    for evaluation in pair[0]:
        first.setdefault(evaluation.trial.profile[0], evaluation)
    one = filled(list(first.values()))
    other = filled([e for e in pair[1] if e in first.values()])
    assert [e.profile for e in one] == [e.profile for e in other]


def test_keeps_only_sound_values_at_its_fidelity_once_per_model() -> None:
    archive = filled([])
    short = Trial(0, (0,), Fidelity(0, 0, 1, CALIBRATION.length))
    failed = Evaluation(Trial(1, (1,), CALIBRATION.archive), (), (), error="broken")
    assert archive.add([Evaluation(short, (1.0,), (1.0,)), failed, answer(2, math.nan)]) == 0
    assert archive.add([answer(3, 1.0), answer(3, 0.5)]) == 1
    assert archive.entries[0].fitness == 1.0


def test_profiles_that_build_one_model_are_one_entry() -> None:
    space = joint_space()
    archive = ParetoArchive(space, "bits", CALIBRATION.archive)
    dropped = space.extreme("bits")
    other = (*dropped[:1], 2, *dropped[2:])
    assert dropped[0] == 0
    told = [
        Evaluation(Trial(i, p, CALIBRATION.archive), (1.0,), (1.0,)) for i, p in enumerate((dropped, other))
    ]
    assert archive.add(told) == 1
    assert archive.best(joint_limits(space)) is not None
    assert archive.best({"bits": 10**6, "macs": 4}) is None


def test_refuses_an_unknown_cost() -> None:
    with pytest.raises(ValueError, match="cost 'bytes' is unknown here; this space has bits"):
        ParetoArchive(one_unit(), "bytes", CALIBRATION.archive)
