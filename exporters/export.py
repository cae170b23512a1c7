"""From a run to a folder in some format: choose the winner, settle fused layers, write."""

from pathlib import Path

from ..search.messages import nearest
from .formats import FORMATS
from .fusing import check_fused, mixed_groups, raised, refuse_mixed
from .winner import Winner, Winners


def export_run(
    run: Path,
    output: Path,
    *,
    budget: str | None = None,
    profile: Path | None = None,
    form: str = "hf",
    fused: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Export a point of a run's front, or a profile file with the run's levels.

    A profile whose refit was kept is written with the refitted levels.

    Args:
        run: a run's folder; its level database lies beside it, in `databases/`.
        output: the folder to make.
        budget: which point: the budget's name or its last word (`bits 3.25` or `3.25`).
        profile: a profile file instead.
        form: a name of `exporters/formats.py`.
        fused: what to do with layers that engines fuse and that differ: `refuse` (if None), `raise` or `keep`.
        overwrite: replace an earlier export at `output`.

    Returns:
        Lines that say what was written.

    Raises:
        ValueError: neither or both of budget and profile are given, the front has no such point, the profile is of
            another model, or the format cannot hold it.
        FileNotFoundError: the run has no front, or its levels are gone.
    """
    if form not in FORMATS:
        raise ValueError(f"format {form!r} is unknown; {nearest(form, FORMATS)}")
    chosen = FORMATS[form]
    if fused is not None and not chosen.fused:
        raise ValueError(
            f"--fused is of no use to the format {form!r}, where every layer stands alone; omit it"
        )
    mode = check_fused(fused or "refuse")
    winners = Winners(run)
    winner = winners.choose(budget, profile)
    lines: list[str] = []
    if chosen.fused and mode != "keep":
        groups = mixed_groups(winner.structure, winner.assignment)
        if groups and mode == "raise":
            winner, lines = _raise(winners, winner, groups)
        else:
            refuse_mixed(winner.assignment, groups)
    return [*lines, *chosen.write(winner, output, overwrite)]


def _raise(winners: Winners, winner: Winner, groups: list[tuple[str, ...]]) -> tuple[Winner, list[str]]:
    """The winner with fused layers at one scheme, and lines that say so."""
    found = winners.with_levels(winner.checkpoint, winner.structure, raised(winner, groups))
    before, after = winner.assignment, found.assignment
    changed = sum(before.get(path) != after.get(path) for path in {**before, **after})
    lines = [
        f"raised {changed} layers to the widest scheme of {len(groups)} fused groups; this profile was not measured"
    ]
    if winner.refitted and not found.refitted:
        lines.append("its levels are the run's own: the refit was of the profile before")
    return found, lines
