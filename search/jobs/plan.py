"""Plan of a run: what it would do and cost, without doing it."""

from contextlib import closing
from pathlib import Path

from ...spaces.budget import in_units
from ..folder.runfolder import RunFolder
from ..run.assembly import Assembly
from ..run.configuration import RunConfig
from ..run.event import duration
from ..run.left_out import left_out
from ..site.site import open_site
from .front_making import COST_UNITS
from .job import calibration_of
from .legs import workload


def plan(config: RunConfig, run: Path) -> list[str]:
    """Describe a run for the user: units, levels, evaluations, tokens, time, memory and disk space.

    The dense model is run on a few sequences to measure its perplexity and speed. Nothing is written.

    Args:
        config: configuration of the run.
        run: folder of the run; the level databases are in `databases/` beside it.

    Returns:
        Lines of text for the user.

    Raises:
        FileExistsError: the folder holds other files than those of a run.
        ValueError: the configuration cannot work.
    """
    RunFolder(run).check()
    with closing(open_site(config, run.parent / "databases")) as site:
        assembly, sanity = site.assembly, site.check()
    calibration = calibration_of(assembly)
    limits = [limit for _, limit in assembly.limits]
    work = workload(assembly.config.search, assembly.space, limits, calibration, _unknown(assembly))
    baselines = 2 * len(limits)
    trials, tokens = work.trials + baselines, work.tokens + baselines * calibration.archive.tokens
    final = len(limits) * (
        5 * assembly.data["validation"].tokens.size + 3 * assembly.data["heldout"].tokens.size
    )
    seconds = (tokens + final) / sanity.tokens_per_second
    space = assembly.space
    levels = sum(len(labels) for labels in assembly.labels.values())
    kind = assembly.kind
    low, high = (
        in_units(kind, space.cost(space.extreme(kind, large), kind), space) for large in (False, True)
    )
    return [
        f"model: {config.model} ({assembly.structure.model_class}, {len(assembly.structure.blocks)} blocks), "
        f"dense perplexity {sanity.perplexity:.3f} on calibration text",
        f"space: {len(space.units)} units; {levels} levels of {len(assembly.labels)} layers to build",
        *(f"levels: {text}" for text in left_out(assembly)),
        f"budgets: {'; '.join(budget.name for budget, _ in assembly.limits)}; "
        f"{low:.9g} to {high:.9g} {COST_UNITS[kind]} can be reached",
        f"search: at most {trials:,} evaluations, {tokens:,} tokens; then {final:,} tokens to validate and report",
        f"time: at most {duration(round(seconds))} at {sanity.tokens_per_second:,.0f} tokens/s, without building the levels; "
        "less where profiles have the same first blocks",
        f"memory: {site.description}",
        f"disk: {assembly.level_bytes:,} bytes of levels in {assembly.databases}, "
        f"{len(assembly.database.errors())} of {len(assembly.labels)} layers built already",
    ]


def _unknown(assembly: Assembly) -> dict[str, dict[str, float]]:
    """Return zero for every layer error; errors are not known before levels are built and do not affect the work."""
    return {unit.name: dict.fromkeys(unit.index, 0.0) for unit in assembly.space.units}
