"""Export of a profile of a run to a folder in any format: choice of the winner, treatment of fused layers, writing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..spaces.nearest import nearest
from .artifact.appearing import check_output
from .artifact.fusing import check_fused, mixed_groups, raised, refuse_mixed
from .artifact.winner import Winner, Winners
from .formats import FORMATS
from .heldout import heldout_check


def export_run(
    run: Path,
    output: Path,
    *,
    budget: str | None = None,
    point: int | None = None,
    size: str | None = None,
    profile: Path | None = None,
    form: str = "hf",
    fused: str | None = None,
    overwrite: bool = False,
    measure: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Export a point of a run's front, or a profile file with the run's levels.

    A profile whose refit was kept is written with the refitted levels. Exactly one of `budget`, `point`, `size` and
    `profile` must be given.

    Args:
        run: folder of the run; its level database lies beside it, in `databases/`.
        output: path of the folder that the export is written to.
        budget: name of the point's budget, or the last word of the name (`bits 3.25` or `3.25`).
        point: number of the point, from 1, in order of cost.
        size: most bytes of the model, embeddings and head included (`4.2GB`, `900MiB`); of the points within this
            size, the one with the best calibration fitness is taken.
        profile: path of a profile file to export instead of a point.
        form: name of the format; `paretopress export --help` lists the names.
        fused: treatment of layers that engines fuse but whose schemes differ: `refuse`, `raise` or `keep`; None means
            `refuse`.
        overwrite: whether to replace an earlier export at `output`.
        measure: whether to measure the written model on the held-out text and refuse it if its figures differ from
            those of the run. This takes two passes over the text, and is possible if the run has held-out figures of
            the same weights and the format holds a model.
        say: function that gets a line of text before a step that takes long.

    Returns:
        Lines of text that say what was written.

    Raises:
        ValueError: not exactly one choice is given, the front has no such point, the profile belongs to another model,
            or the format cannot hold the profile.
        FileNotFoundError: the run has no front, or its levels no longer exist.
        FileExistsError: `check_output` refuses the output folder.
        OSError: the written files differ from what should have been written, or their figures from those of the run.
    """
    if form not in FORMATS:
        raise ValueError(f"format {form!r} is unknown; {nearest(form, FORMATS)}")
    chosen = FORMATS[form]
    if fused is not None and not chosen.fused:
        raise ValueError(f"--fused is of no use to the format {form!r}, which has no fused layers; omit it")
    mode = check_fused(fused or "refuse")
    winners = Winners(run)
    winner = winners.choose(budget, profile, point=point, size=size)
    check_output(output, winner.sources, overwrite)
    lines: list[str] = []
    if size is not None and winner.counted != form:
        lines = [
            f"sizes are those of space.format {winner.counted!r}; files of the format {form!r} may be larger"
        ]
    if chosen.fused and mode != "keep":
        groups = mixed_groups(winner.structure, winner.assignment)
        if groups and mode == "raise":
            winner, raised_lines = _raise(winners, winner, groups)
            lines += raised_lines
        else:
            refuse_mixed(winner.assignment, groups)
    if measure and winner.config is not None:
        winner = replace(winner, inspect=heldout_check(winner.config, winner.measured, say))
    return [*lines, *chosen.write(winner, output, overwrite)]


def _raise(winners: Winners, winner: Winner, groups: list[tuple[str, ...]]) -> tuple[Winner, list[str]]:
    """Return the winner with the fused layers of each group at one scheme, and lines about the change for the user."""
    found = winners.with_levels(winner.model, raised(winner, groups))
    before, after = winner.assignment, found.assignment
    changed = sum(before.get(path) != after.get(path) for path in {**before, **after})
    lines = [
        f"raised {changed} layers to the widest scheme of {len(groups)} fused groups; the new profile was not measured"
    ]
    if winner.refitted and not found.refitted:
        lines.append(
            "the new profile takes the run's levels without the refit, which was made for the profile before"
        )
    return found, lines
