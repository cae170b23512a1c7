"""One whole run, from a configuration to the front, which can be interrupted and resumed at any moment."""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from ...evaluators.fitness import fitness_of
from ...evaluators.journal.journal import Journal
from ...evaluators.population.sanity import Sanity
from ...spaces.space import Profile
from ...workers.pool import WorkerPool
from ..asking.calibration_sequences import CalibrationSequences, Workload
from ..asking.fixed import FixedSearcher
from ..asking.series import Leg, SeriesSearcher
from ..folder.front import Front
from ..folder.runfolder import RunFolder, file_name
from ..folder.settings import differences
from ..run.assembly import Assembly
from ..run.configuration import RunConfig
from ..run.event import Event, Listener
from ..run.goals import Goal, make_goals, unit_errors
from ..run.left_out import left_out
from ..site.shared_values import journals
from ..site.site import Site, open_site
from ..study.answers import Answers
from ..study.archive import ParetoArchive
from ..study.looks import Looks
from ..study.selection import FEWEST_DOCUMENTS
from ..study.study import Study
from .front_making import fingerprints, make_front, profile_of
from .legs import legs, workload

_SELDOM = 20
"""Shortest time from one checkpoint to the next, as a multiple of the time that it takes to store a checkpoint."""

HARMLESS = ("evaluation.device", "evaluation.memory", "evaluation.host_memory", "workers", "stop", "name")
"""Configuration keys that may differ when a run is resumed.

They change no value, or a change of values shows in the fingerprints.
"""


def run(
    config: RunConfig,
    path: Path,
    *,
    databases: Path | None = None,
    fresh: bool = False,
    listen: Listener = lambda event: None,
    report: Callable[[Path], object] = lambda folder: None,
) -> Front:
    """Run or resume the search that `config` describes, in the run folder `path`.

    Args:
        config: configuration with model, text, levels, budgets and methods of the search.
        path: folder of the run, which is created if it does not exist.
        databases: folder of the level databases; by default `databases/` beside the run, shared by all runs there.
        fresh: whether to delete the results in the folder and start over; levels and values of other runs stay.
        listen: function that gets each event of progress.
        report: function that is called with the folder once the front is written, to write the report.

    Returns:
        The front that the run found, which is also stored in `front.json`.

    Raises:
        ValueError: the configuration cannot work, or differs from the one that the folder was started with.
        FileExistsError: the folder holds other files than those of a run.
        BlockingIOError: another process works on this run.
    """
    RunFolder(path).check()
    listen(Event("open model and text", 0))
    with closing(open_site(config, databases or path.parent / "databases")) as site:
        return _run(site, path, fresh, listen, report)


def _run(site: Site, path: Path, fresh: bool, listen: Listener, report: Callable[[Path], object]) -> Front:
    assembly = site.assembly
    if not fresh:
        _refuse_other(site, path)
    sanity = site.check()
    listen(Event("memory", 1, 1, site.description))
    listen(Event("check the dense model", 1, 1, _checked(assembly, sanity)))
    for text in left_out(assembly):
        listen(Event("levels", 1, 1, text))
    if (groups := assembly.data["validation"].groups) < FEWEST_DOCUMENTS:
        text = (
            f"{groups} validation documents cannot show that a profile beats uniform; give {FEWEST_DOCUMENTS}"
        )
        listen(Event("check the validation text", 1, 1, text))
    with RunFolder(path) as folder:
        if fresh:
            folder.begin_anew(_settings(assembly))
        else:
            folder.settle_config(_settings(assembly), HARMLESS)
        folder.write_environment(_environment(site, sanity))
        assembly.database.verify()
        build_levels(site, len(assembly.structure.blocks), listen)
        name = folder.path.resolve().name
        journal, library = journals(assembly, folder.journal, name, site.fingerprint)
        goals = make_goals(assembly)
        pool = site.pool(lambda text: listen(Event("workers", 0, None, text)))
        try:
            study = make_study(assembly, goals, pool, journal, library)
            state = folder.read_checkpoint()
            if state is not None and not study.resume(state):
                listen(Event("search", 0, None, "the journal lost values; measuring them again"))
            total = expected(assembly, goals).tokens
            if assembly.config.stop.max_tokens is not None:
                total = min(total, assembly.config.stop.max_tokens)
            _tell(study, total, listen)
            study.answers.on_answer = lambda tokens: _tell(study, total, listen, tokens)
            checkpoints = Checkpoints(folder)
            study.run(lambda study: _after_step(study, checkpoints, total, listen))
            checkpoints.store(study)
            _tell(study, study.progress.tokens, listen)
            if study.stopped:
                text = f"{study.stopped}, after {study.progress.steps} steps"
                listen(Event("stopped by `stop`", 1, 1, text))
            listen(Event("validate and report", 0, 1))
            front = make_front(assembly, study, goals, site.fingerprint)
        finally:
            pool.close()
            journal.close()
        front = folder.write_front(front)
        folder.write_profiles({file_name(point.budget): profile_of(point, front) for point in front.points})
        report(path)
        listen(Event("validate and report", 1, 1))
    return front


def _refuse_other(site: Site, path: Path) -> None:
    """Refuse, before any work, a run that is busy or that was started under other conditions.

    Raises:
        ValueError: configuration, model, text, libraries or hardware differ; the message names the differences.
        BlockingIOError: another process works on this run.
    """
    if RunFolder(path).read_config() is None:
        return
    with RunFolder(path) as folder:
        folder.settle_config(_settings(site.assembly), HARMLESS)
        before = folder.read_environment() or {}
    now = fingerprints(site.assembly, site.fingerprint)
    changed = differences(before.get("fingerprints", now), now)
    if changed:
        libraries = differences(before.get("packages", {}), site.environment["packages"])
        versions = "".join(f"; {name} was {old}, is {new}" for name, (old, new) in libraries.items())
        raise ValueError(
            f"run {path} was made with another {', another '.join(changed)}{versions}: its values are not "
            "comparable; restore what changed, choose another --run folder, or start over with --fresh"
        )


def _checked(assembly: Assembly, sanity: Sanity) -> str:
    """Return the dense model's perplexity and the BOS for the user; a wrong BOS shows in the perplexity."""
    bos = None if assembly.config.data.bos == "never" else assembly.tokenizer.bos
    start = "no BOS" if bos is None else f"BOS {bos}"
    return f"perplexity {sanity.perplexity:.3f}, {start} before each document"


def _settings(assembly: Assembly) -> dict[str, Any]:
    """Return the resolved configuration as JSON values."""
    return assembly.config.model_dump(mode="json")


def build_levels(where: Site | Assembly, blocks: int, listen: Listener) -> None:
    """Fill the level database, with an event for each finished part.

    Args:
        where: the site, or the objects of a run in this process, that builds the levels.
        blocks: number of blocks of the model.
        listen: function that gets the events.
    """
    done: set[str] = set()

    def progress(part: str) -> None:
        done.add(part)
        listen(Event("build levels", len(done), blocks, part))

    where.build(progress)


def make_study(
    assembly: Assembly, goals: list[Goal], pool: WorkerPool, journal: Journal, library: Journal
) -> Study:
    """Build the study of a run, which evaluates the baselines and starting profiles first, then runs the methods.

    Args:
        assembly: objects of the run, whose levels must be built.
        goals: budgets of the run with their baselines.
        pool: workers that evaluate trials.
        journal: journal of this run.
        library: journal with the values of other runs.
    """
    fidelity = assembly.archive_fidelity
    first = [baseline.profile for goal in goals for baseline in goal.baselines]
    starts = starting_profiles(assembly)
    budgets = {goal.budget.name: goal.limits for goal in goals}
    methods = legs(
        assembly.config.search,
        assembly.space,
        [goal.limits for goal in goals],
        calibration_of(assembly),
        assembly.config.seed,
        unit_errors(assembly.space, assembly.database.errors()),
        informed=bool(starts),
    )
    opening: Leg = lambda scored: FixedSearcher([*first, *starts], fidelity)  # noqa: E731
    return Study(
        SeriesSearcher([opening, *methods], fidelity),
        Answers(pool, journal, space=assembly.space, data=assembly.fingerprints, library=library),
        ParetoArchive(assembly.space, assembly.kind, fidelity),
        teacher=fitness_of(assembly.config.fitness) is not None,
        budgets=budgets,
        max_tokens=assembly.config.stop.max_tokens,
        max_time=assembly.config.stop.max_time,
        looks=Looks(
            assembly.space,
            budgets,
            assembly.data["validation"],
            seed=assembly.config.seed,
            patience=assembly.config.stop.looks,
        ),
    )


def starting_profiles(assembly: Assembly) -> list[Profile]:
    """Return the profiles of the front of the run that `start_from` names, or an empty list without `start_from`.

    Raises:
        ValueError: that run has no front, is a run of another model, or has units or levels that this space lacks.
    """
    if assembly.config.start_from is None:
        return []
    front = RunFolder(Path(assembly.config.start_from)).read_front()
    if front is None:
        raise ValueError(
            f"start_from {assembly.config.start_from!r} has no front.json; finish that run first"
        )
    if front.fingerprints["model"] != assembly.checkpoint.fingerprint:
        raise ValueError(
            f"start_from {assembly.config.start_from!r} is a run of another model, {front.model}; give one of this model"
        )
    return [assembly.space.parse(point.profile) for point in front.points]


def calibration_of(assembly: Assembly) -> CalibrationSequences:
    """Return the calibration sequences that searchers draw on."""
    return CalibrationSequences(
        len(assembly.data["calibration"]), assembly.config.data.length, assembly.archive_fidelity
    )


def expected(assembly: Assembly, goals: list[Goal]) -> Workload:
    """Return the largest number of trials and tokens of the search, with baselines and starting profiles included."""
    known = unit_errors(assembly.space, assembly.database.errors())
    limits = [goal.limits for goal in goals]
    work = workload(assembly.config.search, assembly.space, limits, calibration_of(assembly), known)
    opening = sum(len(goal.baselines) for goal in goals) + len(starting_profiles(assembly))
    return work.add(opening, assembly.archive_fidelity)


class Checkpoints:
    """Stores the state of a study after its steps, as often as this takes only a small part of the time.

    Steps after the last stored state are repeated when the run is resumed. Their values come from the journal. The
    journal does not keep slopes, so the state is always stored after a step with slopes.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._again = 0.0
        self._slope_tokens = 0

    def after_step(self, study: Study) -> None:
        """Store the state if enough time has passed, or if there are new slopes."""
        if time.monotonic() >= self._again or study.progress.slope_tokens > self._slope_tokens:
            self.store(study)

    def store(self, study: Study) -> None:
        """Store the state after the journal, so that a power cut never leaves a state whose values are lost."""
        began = time.monotonic()
        study.answers.journal.sync()
        self.folder.write_checkpoint(study.state_dict())
        self._slope_tokens = study.progress.slope_tokens
        ended = time.monotonic()
        self._again = ended + _SELDOM * (ended - began)


def _after_step(study: Study, checkpoints: Checkpoints, total: int, listen: Listener) -> None:
    checkpoints.after_step(study)
    _tell(study, total, listen)


def _tell(study: Study, total: int, listen: Listener, within_step: int = 0) -> None:
    """Report the tokens so far and the best fitness of each budget.

    Args:
        study: the search that is in progress.
        total: largest number of tokens of the search.
        listen: function that gets the event.
        within_step: tokens that the present step has measured so far.
    """
    best = " ".join(f"{curve[-1][1]:.3g}" for curve in study.progress.curve.values() if curve)
    text = f"best fitness {best}" if best else ""
    done = study.progress.tokens + within_step
    listen(Event("search", done, max(total, done), text))


def _environment(site: Site, sanity: Sanity) -> dict[str, Any]:
    """Return the content of `environment.json`: versions, hardware, seed, fingerprints and two dense-model figures."""
    return site.environment | {
        "seed": site.assembly.config.seed,
        "fingerprints": fingerprints(site.assembly, site.fingerprint),
        "dense_calibration_perplexity": sanity.perplexity,
        "dense_tokens_per_second": round(sanity.tokens_per_second),
    }
