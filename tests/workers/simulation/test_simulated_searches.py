"""Whole searches in a simulation, whose optimum is known."""

import itertools
import json
from pathlib import Path

import pytest

from paretopress.search.methods.dp import DPConfig
from paretopress.search.study.study import Study
from paretopress.workers import Landscape, SimulatedPool
from tests.toys import CALIBRATION, LENGTH, SPACES, bits_limits, bits_space, joint_space
from tests.workers.simulation.simulations import CONSTRAINED, EVOLUTION, ROUGH, best_of_all, state, study


@pytest.mark.parametrize("name", CONSTRAINED)
def test_dp_finds_the_optimum_where_effects_add_up(name: str, tmp_path: Path) -> None:
    make, limits_of = SPACES[name]
    space = make()
    limits = limits_of(space)
    landscape = Landscape(space, CALIBRATION.sequences, 4)
    found = study(tmp_path, space, limits, SimulatedPool(landscape, 8), [DPConfig()])
    found.run()
    best = found.archive.best(limits)
    assert best is not None
    assert best.fitness == pytest.approx(best_of_all(landscape, limits))


def test_evolution_approaches_the_optimum(tmp_path: Path) -> None:
    space = bits_space()
    limits = bits_limits(space)
    landscape = Landscape(space, CALIBRATION.sequences, 4, interaction=0.5)
    longer = EVOLUTION.model_copy(update={"generations": 16})
    found = study(tmp_path, space, limits, SimulatedPool(landscape, 8), [longer])
    found.run()
    best = found.archive.best(limits)
    assert best is not None
    (uniform,) = landscape.expected([space.uniform(limits)])
    optimum = best_of_all(landscape, limits)
    assert optimum <= best.fitness + 1e-12
    assert best.fitness - optimum < 0.1 * (uniform - optimum)


def test_the_result_is_the_same_on_any_number_of_workers(tmp_path: Path) -> None:
    space = bits_space(3)
    limits = bits_limits(space)
    landscape = Landscape(space, CALIBRATION.sequences, 1, **ROUGH)
    found, elapsed = [], []
    for workers in (1, 5, 1000):
        folder = tmp_path / str(workers)
        folder.mkdir()
        pool = SimulatedPool(landscape, workers, spread=0.3, failures=0.05)
        made = study(folder, space, limits, pool, [DPConfig(tokens=2 * LENGTH), EVOLUTION])
        made.run()
        found.append(state(made))
        elapsed.append(pool.elapsed)
    assert found[0] == found[1] == found[2]
    assert elapsed[0] > elapsed[1] > elapsed[2]


@pytest.mark.parametrize("failures", [0.0, 0.1])
def test_a_study_goes_on_to_the_same_result(failures: float, tmp_path: Path) -> None:
    space = joint_space(3)
    limits = SPACES["joint"][1](space)
    landscape = Landscape(space, CALIBRATION.sequences, 1, **ROUGH)

    def begin(folder: Path) -> Study:
        folder.mkdir(exist_ok=True)
        pool = SimulatedPool(landscape, 7, spread=0.3, failures=failures)
        return study(folder, space, limits, pool, [DPConfig(tokens=2 * LENGTH), EVOLUTION])

    whole = begin(tmp_path / "whole")
    whole.run()
    for stop in (1, 4, 9):
        folder = tmp_path / str(stop)
        first = begin(folder)
        for _ in range(stop):
            assert first.step()
        saved = json.loads(json.dumps(first.state_dict()))
        # Some answers of the next step came before the process died.
        taken = itertools.islice(first.answers.pool.run(first.searcher.ask()), 5)
        for evaluation in taken:
            first.answers.journal.append(
                first.answers.key(evaluation.trial.profile, "calibration"), evaluation
            )
        second = begin(folder)
        assert second.resume(saved)
        second.run()
        assert state(second) == state(whole)
