"""All scores of one configuration: measured or taken from where they were, saved, compared, allocated.

`RUN/sensitivities/` holds one `SCORE.json` per score with the fingerprints of what decides it, `journal.jsonl` with
every evaluation (which searches over the same levels use as well), and `profiles/BUDGET_SCORE.yaml`.
"""

import difflib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..evaluators.journal import Journal
from ..evaluators.trial import Fidelity, Trial
from ..spaces.budget import in_units
from ..spaces.files import FORMAT_VERSION, check_version, digest, read_json, write_json, write_yaml
from ..spaces.space import Profile
from ..workers.pool import LocalPool
from .archive import ParetoArchive
from .assembly import Assembly, assemble
from .comparison import allocated, cheapest_within, predicted, rank_correlations
from .configuration import RunConfig
from .event import Event, Listener
from .fixed import FixedSearcher
from .front import COST_UNITS, file_name
from .job import build_levels, search_pool
from .moves import Moves
from .proxies import PROXIES, READS_TEXT, REVISION, proxy_errors
from .runfolder import RunFolder
from .sensitivity import Sensitivity, probes
from .study import Study

MEASURED = "kl"
SCORES = (MEASURED, *PROXIES)

Base = Literal["best", "uniform"] | Profile


@dataclass(frozen=True)
class Scored:
    """One score and what it cost.

    Attributes:
        score: its name.
        sensitivity: its table.
        tokens: of calibration text, times the profiles that ran on them; the teacher is one.
        seconds: that it took when it was measured.
        reused: whether all of it was measured before.
        levels, units: Spearman's rank correlation with measured changes of fitness; None where unknown.
    """

    score: str
    sensitivity: Sensitivity
    tokens: int
    seconds: float
    reused: bool = False
    levels: float | None = None
    units: float | None = None


@dataclass(frozen=True)
class Allocation:
    """The profile of smallest summed score under one budget.

    Attributes:
        budget: its name.
        score: what was allocated by; `uniform` for the uniform profile.
        profile: indices of levels.
        cost: of the front's axis.
        predicted: its fitness as the measured sensitivities add up; None without them.
        fitness: as evaluated on the archive's calibration prefix; None if it was not.
    """

    budget: str
    score: str
    profile: Profile
    cost: int
    predicted: float | None = None
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
        raise ValueError(f"no score is named; known are {', '.join(SCORES)}")
    for name in names:
        if name not in SCORES:
            close = difflib.get_close_matches(name, SCORES, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"score {name!r} is unknown; {hint}known are {', '.join(SCORES)}")
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
        scores: which.
        tokens: of calibration text, for each measurement.
        base: what the other units are at while one is measured: the dearest level, uniform at the first budget, or
            a profile.
        check: evaluate the allocated profiles on the archive's calibration prefix.
        bound: of the predicted fitness for which the cheapest profile is wanted.
        databases: where level databases are; beside the run folder by default.
        listen: told of progress.

    Raises:
        ValueError: the configuration, a score or the bound cannot work.
        BlockingIOError: another process works on this run.
    """
    scores = check_scores(scores)
    if bound is not None and MEASURED not in scores:
        raise ValueError(f"a bound on fitness needs measured sensitivities; add {MEASURED} to the scores")
    listen(Event("open model and text", 0))
    assembly = assemble(config, databases or path.parent / "databases")
    scores = _possible(assembly, scores)
    with RunFolder(path):
        assembly.database.verify()
        build_levels(assembly, listen)
        with _Measuring(assembly, path / "sensitivities", listen) as measuring:
            # The measured one last: its evaluator keeps what it can on the device.
            ordered = sorted(scores, key=lambda name: name == MEASURED)
            scored = {name: measuring.score(name, tokens, base) for name in ordered}
            table = [scored[name] for name in scores]
            measured = next((row.sensitivity for row in table if row.score == MEASURED), None)
            if measured is not None:
                table = [_correlated(row, measured) for row in table]
            allocations = _allocations(assembly, table, measured)
            if check:
                allocations = measuring.evaluated(allocations)
        _write_profiles(assembly, path / "sensitivities" / "profiles", allocations)
    within = None
    if bound is not None and measured is not None:
        profile, cost, fitness = cheapest_within(assembly.space, measured, assembly.kind, bound)
        within = Allocation(f"fitness {bound:g}", MEASURED, profile, cost, fitness)
    return Comparison(assembly, table, allocations, within)


def _possible(assembly: Assembly, scores: Sequence[str]) -> Sequence[str]:
    """Without `fisher` where embeddings or head are units; an error where it was named.

    Raises:
        ValueError: `fisher` was asked for and has no value here.
    """
    ends = {end.path for end in assembly.structure.ends.linears}
    if "fisher" not in scores or not any(ends & set(unit.modules) for unit in assembly.space.units):
        return scores
    if set(scores) == set(SCORES):
        return [name for name in scores if name != "fisher"]
    raise ValueError(
        "embeddings and head are units here, for which fisher has no value; leave that score out"
    )


class _Measuring:
    """Scores with their files; a context that closes the journal.

    Args:
        assembly: a run whose levels are built.
        folder: of the scores.
        listen: told of progress.
    """

    def __init__(self, assembly: Assembly, folder: Path, listen: Listener) -> None:
        self.assembly = assembly
        self.folder = folder
        self.listen = listen
        self._answered = 0
        folder.mkdir(exist_ok=True)
        self.evaluator = assembly.evaluator()
        values = assembly.database.path / "values"
        values.mkdir(parents=True, exist_ok=True)
        own = (folder / "journal.jsonl").resolve()
        link = values / f"{folder.parent.resolve().name}.sensitivities.jsonl"
        link.unlink(missing_ok=True)
        link.symlink_to(own)
        others = [other for other in sorted(values.glob("*.jsonl")) if other.resolve() != own]
        self.journal = Journal(own, self.evaluator.fingerprint)
        self.study = Study(
            FixedSearcher([], assembly.archive_fidelity),
            LocalPool(self.evaluator),
            ParetoArchive(assembly.space, assembly.kind, assembly.archive_fidelity),
            self.journal,
            space=assembly.space,
            data={name: sequences.fingerprint for name, sequences in assembly.data.items()},
            library=Journal(folder / ".no-journal", self.evaluator.fingerprint, others),
            teacher=assembly.config.fitness.name != "cross-entropy",
            budgets={},
        )

    def __enter__(self) -> "_Measuring":
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()

    def score(self, name: str, tokens: int, base: Base) -> Scored:
        """One score, from its file or that of a run beside this one if these fit, else measured and saved."""
        settings = self._settings(name, tokens, base)
        own = self.folder / f"{name}.json"
        beside = sorted(self.folder.parent.parent.glob(f"*/{self.folder.name}/{name}.json"))
        for file in (own, *beside):
            if (found := _read(file, settings, strict=file == own)) is not None:
                if file != own:
                    _write(own, settings, found)
                return replace(found, reused=True)
        stage = f"score {name}"
        self.listen(Event(stage, 0, None))
        began = time.perf_counter()
        if name == MEASURED:
            sensitivity, spent = self._measure(tokens, self._base(base), stage)
        else:
            text = self._text(tokens)
            sensitivity = Sensitivity({}, text.size, 0.0, proxy_errors(name, self.assembly, text))
            spent = text.size if name in READS_TEXT else 0
        seconds = round(time.perf_counter() - began, 3)
        known = name == MEASURED and not self._answered
        scored = Scored(name, sensitivity, spent, seconds, known)
        self.listen(Event(stage, 1, 1))
        _write(own, settings, scored)
        return scored

    def evaluated(self, allocations: Sequence[Allocation]) -> list[Allocation]:
        """The same with their fitness on the archive's calibration prefix."""
        profiles = [allocation.profile for allocation in allocations]
        found = self._evaluate(profiles, self.assembly.archive_fidelity, "check the allocations")
        return [replace(a, fitness=fitness) for a, fitness in zip(allocations, found, strict=True)]

    def _settings(self, name: str, tokens: int, base: Base) -> dict[str, Any]:
        """What decides a score, as JSON values."""
        assembly = self.assembly
        units = [[unit.name, unit.modules, list(unit.index)] for unit in assembly.space.units]
        settings: dict[str, Any] = {
            "score": name,
            "revision": REVISION,
            "model": assembly.checkpoint.fingerprint,
            "levels": assembly.database.fingerprint,
            "units": digest(units),
        }
        if name in READS_TEXT:
            text = {"text": assembly.data["calibration"].fingerprint, "tokens": self._text(tokens).size}
            settings |= text | {"seed": assembly.config.seed}
        if name == MEASURED:
            settings |= {
                "text": assembly.data["calibration"].fingerprint,
                "tokens": search_pool(assembly).prefix(tokens).tokens,
                "evaluation": self.evaluator.fingerprint,
                "base": digest(assembly.space.labels(self._base(base))),
            }
        return settings

    def _base(self, base: Base) -> Profile:
        if isinstance(base, tuple):
            return base
        limits = self.assembly.limits[0][1]
        space = self.assembly.space
        return Moves(space, limits).dearest if base == "best" else space.uniform(limits)

    def _text(self, tokens: int) -> Any:
        """Whole micro-batches of calibration sequences (N, T), about as many tokens."""
        rows = self.assembly.data["calibration"].tokens
        size = self.assembly.runner.micro_batch
        wanted = min(-(-tokens // self.assembly.config.data.length), len(rows))
        return rows[: max(wanted // size, 1) * size]

    def _measure(self, tokens: int, base: Profile, stage: str) -> tuple[Sensitivity, int]:
        space = self.assembly.space
        fidelity = search_pool(self.assembly).prefix(tokens)
        found = probes(space, base)
        fitness = self._evaluate([base, *(probe.profile for probe in found)], fidelity, stage)
        measured = list(zip(found, fitness[1:], strict=True))
        spent = (
            1 + len({space.canonical(p) for p in [base, *(probe.profile for probe in found)]})
        ) * fidelity.tokens
        return Sensitivity.of(space, base, fidelity.tokens, fitness[0], measured), spent

    def _evaluate(self, profiles: Sequence[Profile], fidelity: Fidelity, stage: str) -> list[float]:
        total = fidelity.tokens * len({self.assembly.space.canonical(profile) for profile in profiles})
        self._answered = 0

        def answered(tokens: int) -> None:
            self._answered = tokens
            self.listen(Event(stage, tokens, total))

        self.study.on_answer = answered
        trials = [Trial(i, profile, fidelity) for i, profile in enumerate(profiles)]
        answers = self.study.evaluate(trials)
        return [float("inf") if answer.error is not None else answer.fitness for answer in answers]


def _correlated(row: Scored, measured: Sensitivity) -> Scored:
    levels, units = rank_correlations(measured, row.sensitivity)
    return replace(row, levels=levels, units=units)


def _allocations(
    assembly: Assembly, table: Sequence[Scored], measured: Sensitivity | None
) -> list[Allocation]:
    space, kind = assembly.space, assembly.kind
    found = []
    for budget, limits in assembly.limits:
        profiles = {"uniform": space.uniform(limits)}
        profiles |= {row.score: allocated(space, row.sensitivity, limits) for row in table}
        for score, profile in profiles.items():
            guess = None if measured is None else predicted(space, measured, profile)
            found.append(Allocation(budget.name, score, profile, space.cost(profile, kind), guess))
    return found


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


def _write(file: Path, settings: Mapping[str, Any], scored: Scored) -> None:
    record = {
        "format_version": FORMAT_VERSION,
        "settings": dict(settings),
        "tokens": scored.tokens,
        "seconds": scored.seconds,
        "sensitivity": scored.sensitivity.to_json(),
    }
    write_json(file, record)


def _read(file: Path, settings: Mapping[str, Any], *, strict: bool) -> Scored | None:
    """The score in a file if it was made with the same settings.

    Raises:
        ValueError: the file is damaged; not `strict`, it is passed over.
    """
    if not file.exists():
        return None
    try:
        record = check_version(file, read_json(file))
    except ValueError:
        if strict:
            raise
        return None
    if record.get("settings") != settings:
        return None
    sensitivity = Sensitivity.from_json(record["sensitivity"])
    return Scored(str(settings["score"]), sensitivity, record["tokens"], record["seconds"])
