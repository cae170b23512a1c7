"""What the tests of simulated searches share."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paretopress.evaluators.journal.journal import Journal
from paretopress.evaluators.trial import Evaluation, Fidelity, Trial
from paretopress.search.asking.method import MethodConfig
from paretopress.search.asking.series import SeriesSearcher
from paretopress.search.jobs.legs import legs
from paretopress.search.methods.evolution import EvolutionConfig
from paretopress.search.study.answers import Answers
from paretopress.search.study.archive import ParetoArchive
from paretopress.search.study.study import Study
from paretopress.spaces.space import Limits, Profile, Space
from paretopress.workers import Landscape, WorkerPool
from tests.toys import CALIBRATION, LENGTH, SPACES, everything

DATA = {"calibration": "1" * 32}
ROUGH = {"interaction": 0.6, "saturation": 1.5, "spread": 0.5, "noise": 0.1}
"""Every trait at once."""
CONSTRAINED = [name for name in SPACES if name != "one level"]


def at(start: int, stop: int, seed: int = 0, data: str = "calibration") -> Fidelity:
    return Fidelity(seed, start, stop, LENGTH, data)


def random_profiles(space: Space, count: int, seed: int = 0) -> list[Profile]:
    rng = np.random.default_rng(seed)
    counts = [len(unit.levels) for unit in space.units]
    return [tuple(rng.integers(counts).tolist()) for _ in range(count)]


def answers(landscape: Landscape, profiles: Sequence[Profile], fidelity: Fidelity) -> list[Evaluation]:
    return list(landscape.evaluate([Trial(n, p, fidelity) for n, p in enumerate(profiles)]))


def number(evaluation: Evaluation) -> int:
    return evaluation.trial.number


def best_of_all(landscape: Landscape, limits: Limits) -> float:
    """The lowest expected value within the limits, by looking at every profile."""
    space = landscape.space
    return min(landscape.expected([p for p in everything(space) if space.fits(p, limits)]))


def study(
    folder: Path, space: Space, limits: Limits, pool: WorkerPool, methods: Sequence[MethodConfig]
) -> Study:
    fidelity = CALIBRATION.archive
    return Study(
        SeriesSearcher(legs(methods, space, [limits], CALIBRATION, 1, {}), fidelity),
        Answers(pool, Journal(folder / "journal.jsonl", "0" * 32), space=space, data=DATA),
        ParetoArchive(space, space.kinds[0], fidelity),
        budgets={"b": limits},
    )


def state(study: Study) -> dict[str, Any]:
    """All that a study knows, but the time it took."""
    found: dict[str, Any] = json.loads(json.dumps(study.state_dict()))
    found["progress"].pop("seconds")
    return found


EVOLUTION = EvolutionConfig(
    generations=8, offspring=12, survivors=(4, 1), tokens=(2 * LENGTH, 8 * LENGTH), groups="none"
)
