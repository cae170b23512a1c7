"""The comparison of all scores of one configuration, and of the profiles that minimise each score.

The folder `RUN/sensitivities/` holds one `SCORE.json` per score with the settings that the score depends on. Its
`journal.jsonl` holds every evaluation; searches over the same levels use these values too. The profiles are in
`profiles/BUDGET_SCORE.yaml`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...spaces.budget import in_units
from ...spaces.nearest import nearest
from ...spaces.space import Limits, Profile
from ...spaces.storage.files import FORMAT_VERSION, write_yaml
from ..allocation.allocator import Allocator
from ..allocation.sensitivity import Sensitivity
from ..folder.runfolder import RunFolder, file_name
from ..jobs.front_making import COST_UNITS
from ..jobs.job import build_levels
from ..run.assembly import Assembly, assemble
from ..run.configuration import RunConfig
from ..run.event import Event, Listener
from .comparison import cheapest_within, predicted, rank_correlations
from .level_scores import Scored, stored_proxy
from .probing import MEASURED, Base, Probing
from .proxies import PROXIES

SCORES = (MEASURED, *PROXIES)


@dataclass(frozen=True)
class Allocation:
    """The profile of smallest summed score under one budget.

    Attributes:
        budget: name of the budget.
        score: name of the score that was minimised, or `uniform` for the uniform profile.
        profile: level index of every unit.
        cost: cost of the profile, of the kind on the front's axis.
        predicted: fitness of the base plus the measured changes of all units; None without the measured score.
        gap: largest amount by which the summed score of another profile could be lower, in the unit of the score; None
            where the profile is proved to be the best, and where no bound is known (`Allocator.gap`).
        fitness: fitness on the archive's calibration prefix; None if the profile was not evaluated.
    """

    budget: str
    score: str
    profile: Profile
    cost: int
    predicted: float | None = None
    gap: float | None = None
    fitness: float | None = None


@dataclass(frozen=True)
class Comparison:
    """All scores of a configuration with the profiles allocated by them.

    Attributes:
        assembly: assembled run that the scores were made with.
        scored: scores with their rank correlations, in the order asked for.
        allocations: allocations of all budgets in turn; for each budget first the uniform profile, then one per score.
        within: cheapest profile within the bound on predicted fitness; None if no bound was given.
    """

    assembly: Assembly
    scored: Sequence[Scored]
    allocations: Sequence[Allocation]
    within: Allocation | None = None

    @property
    def cost_unit(self) -> str:
        """The name of the unit of the costs that `in_units` returns."""
        return COST_UNITS[self.assembly.kind]

    def in_units(self, cost: int) -> float:
        """Return a cost of the front's axis in the unit that budgets are given in."""
        return in_units(self.assembly.kind, cost, self.assembly.space)


def check_scores(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of scores without repetition.

    Raises:
        ValueError: a name is not that of a score, or no name is given.
    """
    if not names:
        raise ValueError(f"no score is given; known: {', '.join(SCORES)}")
    for name in names:
        if name not in SCORES:
            raise ValueError(f"score {name!r} is unknown; {nearest(name, SCORES)}")
    return tuple(dict.fromkeys(names))


def sensitivities(
    config: RunConfig,
    path: Path,
    *,
    scores: Sequence[str] = SCORES,
    tokens: int = 8192,
    base: Base = "best",
    check: bool = False,
    bound: float | None = None,
    databases: Path | None = None,
    listen: Listener = lambda event: None,
) -> Comparison:
    """Score all levels, allocate a profile by each score under each budget, and save both in the run folder.

    Levels that are missing are built first.

    Args:
        config: configuration of the run, with model, text, levels and budgets.
        path: run folder; runs in the same parent folder are searched for scores that can be reused.
        scores: names of the scores to make.
        tokens: number of calibration tokens of each measurement.
        base: levels of the other units while one unit is measured: the most expensive level of each (`best`), the
            uniform profile of the first budget (`uniform`), or a given profile.
        check: whether the allocated profiles are evaluated on the archive's calibration prefix.
        bound: largest predicted fitness for which the cheapest profile is wanted; this profile keeps all limits of the
            budgets except that on the front's axis.
        databases: folder of the level databases; by default `databases` in the parent folder of the run.
        listen: listener that is told of progress.

    Raises:
        ValueError: the configuration, the name of a score or the bound is invalid.
        FileExistsError: the folder holds something other than a run.
        BlockingIOError: another process works on this run.
    """
    RunFolder(path).check()
    scores = check_scores(scores)
    if bound is not None and MEASURED not in scores:
        raise ValueError(f"a bound on fitness needs the measured score; add {MEASURED} to the scores")
    listen(Event("open model and text", 0))
    assembly = assemble(config, databases or path.parent / "databases")
    beside = {} if bound is None else _beside(assembly)
    with RunFolder(path):
        assembly.database.verify()
        build_levels(assembly, len(assembly.structure.blocks), listen)
        folder = path / "sensitivities"
        with Probing(assembly, folder, listen) as probing:
            # The measured score comes last, because its evaluator keeps as much as it can on the device.
            scored = {
                name: stored_proxy(name, assembly, folder, tokens, listen)
                for name in scores
                if name != MEASURED
            }
            if MEASURED in scores:
                scored[MEASURED] = probing.score(tokens, base)
            table = [scored[name] for name in scores]
            measured = scored[MEASURED].sensitivity if MEASURED in scored else None
            if measured is not None:
                table = [_correlated(row, measured) for row in table]
            allocations = allocations_by(assembly, table, measured)
            if check:
                allocations = _evaluated(allocations, probing)
        _write_profiles(assembly, folder / "profiles", allocations)
    within = None
    if bound is not None and measured is not None:
        profile, cost, fitness = cheapest_within(assembly.space, measured, assembly.kind, bound, beside)
        within = Allocation(f"fitness {bound:g}", MEASURED, profile, cost, fitness)
    return Comparison(assembly, table, allocations, within)


def _correlated(row: Scored, measured: Sensitivity) -> Scored:
    levels, units = rank_correlations(measured, row.sensitivity)
    return replace(row, levels=levels, units=units)


def allocations_by(
    assembly: Assembly, table: Sequence[Scored], measured: Sensitivity | None
) -> list[Allocation]:
    """Return for every budget the uniform profile and the profile of smallest sum of each score.

    Args:
        assembly: assembled run with the space and the budgets.
        table: scores to allocate by.
        measured: measured score that predicts the fitness of the profiles, or None.
    """
    space, kind = assembly.space, assembly.kind
    allocators = {row.score: Allocator(space, row.sensitivity.errors(space)) for row in table}
    found = []
    for budget, limits in assembly.limits:
        profiles: dict[str, tuple[Profile, float | None]] = {"uniform": (space.uniform(limits), None)}
        profiles |= {score: (each.best(limits), each.gap(limits)) for score, each in allocators.items()}
        for score, (profile, gap) in profiles.items():
            guess = None if measured is None else predicted(space, measured, profile)
            found.append(Allocation(budget.name, score, profile, space.cost(profile, kind), guess, gap))
    return found


def _beside(assembly: Assembly) -> Limits:
    """Return the limits that all budgets set on costs other than that on the front's axis.

    The cheapest profile within a bound on fitness keeps these limits.

    Raises:
        ValueError: these limits are not the same in every budget.
    """
    first, *others = (
        {kind: limit for kind, limit in limits.items() if kind != assembly.kind}
        for _, limits in assembly.limits
    )
    if any(other != first for other in others):
        names = "; ".join(budget.name for budget, _ in assembly.limits)
        raise ValueError(
            f"a bound on fitness needs budgets that differ in {assembly.kind} only, not {names}; give such budgets, or "
            "one budget"
        )
    return first


def _evaluated(allocations: Sequence[Allocation], probing: Probing) -> list[Allocation]:
    """Return the allocations with their fitness, evaluated on the archive's calibration prefix."""
    profiles = [allocation.profile for allocation in allocations]
    found = probing.fitness(profiles, probing.assembly.archive_fidelity, "check the allocations")
    return [replace(a, fitness=fitness) for a, fitness in zip(allocations, found, strict=True)]


def _write_profiles(assembly: Assembly, folder: Path, allocations: Sequence[Allocation]) -> None:
    folder.mkdir(exist_ok=True)
    for allocation in allocations:
        record = {
            "format_version": FORMAT_VERSION,
            "model": assembly.config.model,
            "fingerprint": assembly.checkpoint.fingerprint,
            "method": allocation.score,
            "budget": allocation.budget,
            "costs": assembly.space.costs(allocation.profile),
            "units": assembly.space.describe(allocation.profile),
        }
        write_yaml(folder / f"{file_name(allocation.budget)}_{allocation.score}.yaml", record)
