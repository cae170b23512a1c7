"""The simulation at scale: ten thousand units, a hundred budgets, a thousand simulated workers."""

import time
from pathlib import Path

import numpy as np

from benchmarks.speed.overhead import layered_space
from paretopress.evaluators.journal.journal import Journal
from paretopress.evaluators.trial import Fidelity, Trial
from paretopress.search.asking.calibration_sequences import CalibrationSequences
from paretopress.search.asking.series import SeriesSearcher
from paretopress.search.jobs.legs import legs
from paretopress.search.methods.evolution import EvolutionConfig
from paretopress.search.study.answers import Answers
from paretopress.search.study.archive import ParetoArchive
from paretopress.search.study.study import Study
from paretopress.workers import Landscape, SimulatedPool
from tests.workers.simulation.simulations import ROUGH, at, number


def test_a_generation_takes_seconds(tmp_path: Path) -> None:
    space = layered_space(10_000)
    began = time.thread_time()
    landscape = Landscape(space, 64, interaction=0.3, spread=0.5, noise=0.02)
    fidelity = Fidelity(0, 0, 8, 64)
    pool = SimulatedPool(landscape, 1000, spread=0.2)
    budgets = {str(n): {"bits": (225 + 4 * n) * space.weights // 100} for n in range(100)}
    config = EvolutionConfig(groups="none", survivors=(1,), tokens=(64,))
    searches = legs([config], space, list(budgets.values()), CalibrationSequences(64, 64, fidelity), 0, {})
    study = Study(
        SeriesSearcher(searches, fidelity),
        Answers(
            pool, Journal(tmp_path / "journal.jsonl", "0" * 32), space=space, data={"calibration": "1" * 32}
        ),
        ParetoArchive(space, "bits", fidelity),
        budgets=budgets,
    )
    for _ in range(3):
        assert study.step()
    assert study.progress.evaluations > 128
    assert all(study.progress.curve.values())
    assert time.thread_time() - began < 30


def test_ten_thousand_units_and_a_thousand_workers_take_seconds() -> None:
    """A hundred budgets' profiles: from all units at 2 bits to all at 6, unit after unit."""
    space = layered_space(10_000)
    landscape = Landscape(space, 64, 0, **ROUGH)
    raises = np.linspace(0, 4 * 10_000, 100).astype(int)
    profiles = [tuple(((done + 9_999 - np.arange(10_000)) // 10_000).tolist()) for done in raises]
    pool = SimulatedPool(landscape, 1000, spread=0.2)
    began = time.thread_time()
    found = sorted(pool.run([Trial(n, p, at(0, 8)) for n, p in enumerate(profiles)]), key=number)
    assert time.thread_time() - began < 10
    assert pool.elapsed == max(e.seconds for e in found)
    fitness = [e.fitness for e in found]
    assert fitness[-1] == 0
    assert fitness[0] > 5 * fitness[50] > 0
