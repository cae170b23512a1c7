"""The search method `optuna`: black-box samplers over a few parameters that `Projection` turns into profiles.

One variable per unit with the budget as a constraint does not work. Independent draws for 224 units lie ten standard
deviations from the budget, and not one of a thousand trials was as good as the uniform profile.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from pydantic import PositiveFloat, PositiveInt

from ...spaces.space import Limits, Profile, Space
from ..asking.calibration_sequences import CalibrationSequences, Workload
from ..asking.method import MethodConfig, Task
from ..asking.turns import Request, Turns, read_fitness, read_profiles, starting_profiles, write_fitness
from .projection import Projection

if TYPE_CHECKING:
    from cmaes import CMA

Parameters = dict[str, float]


class OptunaConfig(MethodConfig):
    """Settings of `optuna`.

    Attributes:
        sampler: sampler of the parameters: `cmaes` (the best in our benchmark of methods), `tpe`, `nsga2`, or `gp`,
            which takes seconds per trial.
        trials: number of parameter vectors that are measured, including the zero vector, which is the uniform profile.
        tokens: number of calibration tokens that each profile is measured on.
        finalists: number of best profiles that are measured again on the calibration prefix by which the archive ranks
            profiles.
        knots: number of knots of the curve over the depth of the model, at most one per block.
        spread: largest absolute value of a parameter, in log2 of cost, so that 1 stands for a factor of two in cost.
        batch: number of parameter vectors that are drawn before their profiles are measured.
    """

    summary: ClassVar[str] = (
        "Optuna's CMA-ES, TPE, NSGA-II or GP over a depth curve and an offset per layer type"
    )

    method: Literal["optuna"] = "optuna"
    sampler: Literal["tpe", "nsga2", "gp", "cmaes"] = "cmaes"
    trials: PositiveInt = 256
    tokens: PositiveInt = 16384
    finalists: PositiveInt = 4
    knots: PositiveInt = 8
    spread: PositiveFloat = 1.5
    batch: PositiveInt = 8

    def build(self, task: Task) -> "OptunaSearcher":
        """Build the searcher for a task."""
        return OptunaSearcher(self, task.space, task.limits, task.calibration, task.seed, task.start)


class OptunaSearcher(Turns):
    """A searcher with Optuna's samplers whose state can be saved as JSON, without a pickle.

    For every batch a new study is built from the recorded parameters, fitness and attributes. The sampler of each trial
    is seeded by the root seed and the trial's number, so that the record determines all later trials. CMA-ES uses the
    package `cmaes` that Optuna's own sampler wraps, because Optuna's sampler keeps its state as a pickle.

    Args:
        config: settings of the method.
        space: space of the profiles.
        limits: limits that no profile exceeds.
        calibration: calibration sequences to measure on.
        rng_seed: root of the seeds of all samplers.
        start: profiles that are measured besides the uniform profile; the samplers do not learn from them.

    Attributes:
        projection: function from parameters to profiles within the limits.
    """

    def __init__(
        self,
        config: OptunaConfig,
        space: Space,
        limits: Limits,
        calibration: CalibrationSequences,
        rng_seed: int,
        start: Sequence[Profile] = (),
    ) -> None:
        super().__init__(space, calibration, rng_seed, starting_profiles(space, limits, start))
        self.config = config
        self._seed = rng_seed
        self.projection = Projection(space, limits, config.knots)
        self._started = False
        self._finished = False
        self._parameters: list[Parameters] = []
        self._attributes: list[dict[str, Any]] = []
        self._profiles: list[Profile] = []
        self._fitness: list[float] = []
        self._cma: CMA | None = None

    def workload(self) -> Workload:
        """Return an upper bound of the trials and tokens of the search, which counts known values too."""
        config, calibration = self.config, self.calibration
        work = Workload().add(len(self.starts) + config.finalists, calibration.archive)
        return work.add(config.trials, calibration.prefix(config.tokens))

    def _next(self) -> list[Request]:
        if not self._started:
            return [(profile, self.calibration.archive) for profile in self.starts]
        if self._finished:
            return []
        count = min(self.config.batch, self.config.trials - len(self._fitness))
        if not count:
            self._finished = True
            self._promote_best()
            return []
        for parameters, attributes in self._suggest(count):
            self._parameters.append(parameters)
            self._attributes.append(attributes)
            self._profiles.append(self.projection.profile(parameters))
        return [(profile, self.calibration.prefix(self.config.tokens)) for profile in self._profiles[-count:]]

    def _promote_best(self) -> None:
        """Request that the profiles of the best `finalists` different models are measured at the archive's fidelity."""
        best: dict[Profile, Profile] = {}
        for i in np.argsort(self._fitness, kind="stable"):
            best.setdefault(self.space.canonical(self._profiles[i]), self._profiles[i])
        for profile in list(best.values())[: self.config.finalists]:
            self._promote(profile)

    def _suggest(self, count: int) -> list[tuple[Parameters, dict[str, Any]]]:
        first = len(self._fitness)
        found: list[tuple[Parameters, dict[str, Any]]] = []
        if first == 0:
            found = [(dict.fromkeys(self.projection.names, 0.0), self._first_attributes())]
        numbers = range(first + len(found), first + count)
        if self.config.sampler == "cmaes":
            return found + [(self._ask_cma(number), {}) for number in numbers]
        with _quiet():
            study = self._study(found)
            return found + [self._ask_optuna(study, number) for number in numbers]

    def _first_attributes(self) -> dict[str, Any]:
        """Return the attributes that Optuna's sampler records with the first trial, which is the zero vector here."""
        if self.config.sampler == "cmaes":
            return {}
        with _quiet():
            return self._ask_optuna(optuna.create_study(), 0)[1]

    def _distributions(self) -> dict[str, BaseDistribution]:
        spread = self.config.spread
        return {name: FloatDistribution(-spread, spread) for name in self.projection.names}

    def _study(self, running: Sequence[tuple[Parameters, dict[str, Any]]]) -> optuna.Study:
        """Return a study in memory of all trials with known fitness, and of the given trials as running."""
        study = optuna.create_study()
        distributions = self._distributions()
        told = zip(self._parameters, self._attributes, self._fitness, strict=True)
        trials = [
            create_trial(
                state=TrialState.COMPLETE if fitness < math.inf else TrialState.FAIL,
                params=dict(parameters),
                distributions=distributions,
                value=fitness if fitness < math.inf else None,
                system_attrs=dict(attributes),
            )
            for parameters, attributes, fitness in told
        ]
        trials += [
            create_trial(
                state=TrialState.RUNNING,
                params=dict(parameters),
                distributions=distributions,
                system_attrs=dict(attributes),
            )
            for parameters, attributes in running
        ]
        study.add_trials(trials)
        return study

    def _ask_optuna(self, study: optuna.Study, number: int) -> tuple[Parameters, dict[str, Any]]:
        study.sampler = self._sampler(self._seed_of(number))
        trial = study.ask(self._distributions())
        recorded = study.trials[trial.number]
        return dict(recorded.params), dict(recorded.system_attrs)

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        match self.config.sampler:
            case "nsga2":
                population = max(min(50, self.config.trials // 8), 4)
                return optuna.samplers.NSGAIISampler(population_size=population, seed=seed)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed)
            case _:
                return optuna.samplers.TPESampler(multivariate=True, seed=seed)

    def _seed_of(self, number: int) -> int:
        return int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])

    def _ask_cma(self, number: int) -> Parameters:
        """Draw the vector of a trial from CMA-ES, after telling it all complete populations.

        All vectors of one population come from the same distribution.
        """
        names, spread = self.projection.names, self.config.spread
        if self._cma is None:
            from cmaes import CMA  # imports scipy.stats, which takes longer than optuna itself

            bounds = np.tile([-spread, spread], (len(names), 1))
            self._cma = CMA(np.zeros(len(names)), spread / 4, bounds, seed=self._seed_of(0))
        cma, size = self._cma, self._cma.population_size
        for start in range(cma.generation * size, len(self._fitness) - size + 1, size):
            cma.tell(self._population(range(start, start + size)))
        cma.reseed_rng(self._seed_of(number))
        return dict(zip(names, map(float, cma.ask()), strict=True))

    def _population(self, numbers: range) -> list[tuple[npt.NDArray[np.float64], float]]:
        """Return the vectors of some trials with their fitness; a failed trial counts as worse than all finite ones."""
        worst = max((f for f in self._fitness[: numbers.stop] if f < math.inf), default=0.0) + 1.0
        return [
            (
                np.array([self._parameters[n][name] for name in self.projection.names]),
                min(self._fitness[n], worst),
            )
            for n in numbers
        ]

    def _learn(self, _profiles: list[Profile], fitness: list[float]) -> None:
        if self._started:
            self._fitness += fitness
        self._started = True

    def _save(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "started": self._started,
            "finished": self._finished,
            "parameters": [list(p.values()) for p in self._parameters],
            "attributes": list(self._attributes),
            "profiles": [list(p) for p in self._profiles],
            "fitness": [write_fitness(f) for f in self._fitness],
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        names = self.projection.names
        self._seed, self._cma = state["seed"], None
        self._started, self._finished = state["started"], state["finished"]
        self._parameters = [dict(zip(names, row, strict=True)) for row in state["parameters"]]
        self._attributes = [dict(row) for row in state["attributes"]]
        self._profiles = read_profiles(state["profiles"])
        self._fitness = [read_fitness(f) for f in state["fitness"]]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Optuna's log messages, except errors, while the context is open."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
