"""All scores of one configuration: measured or taken from where they were, saved, compared, allocated.

`RUN/sensitivities/` holds one `SCORE.json` per score with the fingerprints of what decides it, `journal.jsonl` with
every evaluation (which searches over the same levels use as well), and `profiles/BUDGET_SCORE.yaml`.
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
        score: what was allocated by; `uniform` for the uniform profile.
        profile: indices of levels.
        cost: of the front's axis.
        predicted: its fitness as the measured sensitivities add up; None without them.
        gap: how much lower at most the summed score could be, in the score's unit; None where it is proved the least
            and where nothing is known of it (`Allocator.gap`).
        fitness: as evaluated on the archive's calibration prefix; None if it was not.
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
    """All of it.

    Attributes:
        assembly: what it was made with.
        scored: one row per score.
        allocations: per budget one per score, after uniform.
        within: the cheapest profile within the bound on fitness that was asked for.
    """

    assembly: Assembly
    scored: Sequence[Scored]
    allocations: Sequence[Allocation]
    within: Allocation | None = None

    @property
    def cost_unit(self) -> str:
        """What `in_units` gives."""
        return COST_UNITS[self.assembly.kind]

    def in_units(self, cost: int) -> float:
        """A cost of the front's axis in the unit of its budgets."""
        return in_units(self.assembly.kind, cost, self.assembly.space)


def check_scores(names: Sequence[str]) -> tuple[str, ...]:
    """The names without repetition.

    Raises:
        ValueError: one of them is no score, or there is none.
    """
    if not names:
        raise ValueError(f"no score is named; known: {', '.join(SCORES)}")
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
    """Build the levels if need be, score them, save the scores in the run folder `path` and allocate by each.

    Args:
        config: model, text, levels, budgets.
        path: run folder; those beside it are looked through for scores that fit.
        scores: names of the scores.
        tokens: of calibration text, for each measurement.
        base: what the other units are at while one is measured: the dearest level, uniform at the first budget, or
            a profile.
        check: evaluate the allocated profiles on the archive's calibration prefix.
        bound: of the predicted fitness for which the cheapest profile is wanted, within the limits that budgets have
            beside the axis.
        databases: where level databases are; beside the run folder by default.
        listen: told of progress.

    Raises:
        ValueError: the configuration, a score or the bound cannot work.
        FileExistsError: the folder holds something else than a run.
        BlockingIOError: another process works on this run.
    """
    RunFolder(path).check()
    scores = check_scores(scores)
    if bound is not None and MEASURED not in scores:
        raise ValueError(f"a bound on fitness needs measured sensitivities; add {MEASURED} to the scores")
    listen(Event("open model and text", 0))
    assembly = assemble(config, databases or path.parent / "databases")
    beside = {} if bound is None else _beside(assembly)
    with RunFolder(path):
        assembly.database.verify()
        build_levels(assembly, len(assembly.structure.blocks), listen)
        folder = path / "sensitivities"
        with Probing(assembly, folder, listen) as probing:
            # The measured one last: its evaluator keeps what it can on the device.
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
    """Uniform and what each score of the table leads to, for every budget."""
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
    """The limits on costs beside the axis, which a bound on fitness must keep too.

    Raises:
        ValueError: they are not the same in every budget.
    """
    first, *others = (
        {kind: limit for kind, limit in limits.items() if kind != assembly.kind}
        for _, limits in assembly.limits
    )
    if any(other != first for other in others):
        names = "; ".join(budget.name for budget, _ in assembly.limits)
        raise ValueError(
            f"a bound on fitness needs the same limits beside {assembly.kind} in every budget, not {names}; give "
            "budgets that agree in them, or one"
        )
    return first


def _evaluated(allocations: Sequence[Allocation], probing: Probing) -> list[Allocation]:
    """The same with their fitness on the archive's calibration prefix."""
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
