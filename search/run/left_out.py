"""Levels that some layers do not have, because the number of inputs is no multiple of the level's block or pattern."""

from ...spaces.levels.labels import parse_label
from .assembly import Assembly


def left_out(assembly: Assembly) -> list[str]:
    """Return lines for the user that say which levels are left out for how many layers.

    Levels that need the same multiple share a line. There are no lines if every layer has every level.
    """
    linears = (*assembly.structure.linears, *assembly.structure.ends.linears)
    inputs = {linear.path: linear.in_features for linear in linears}
    found: dict[tuple[int, int], list[str]] = {}
    for label in assembly.config.space.levels:
        multiple = parse_label(label).multiple
        if count := sum(inputs[layer] % multiple > 0 for layer in assembly.labels):
            found.setdefault((count, multiple), []).append(label)
    return [
        f"{', '.join(labels)} left out for {count} of {len(assembly.labels)} layers, whose number of inputs is "
        f"not a multiple of {multiple}"
        for (count, multiple), labels in found.items()
    ]
