"""Checks of an exported profile and its files against the profile's budget and the size rules of the search."""

from collections.abc import Sequence

from ...spaces.budget import BudgetConfig, in_units, parse_bytes
from ...spaces.construction import space_of
from ...spaces.levels.labels import parse_label
from ...spaces.levels.sizes import SizeRule
from ...spaces.space import Profile, Space
from .compression import Compression
from .tensor_files import PlannedTensor
from .winner import Winner


def run_space(winner: Winner) -> Space:
    """Build the space that the winner's run searched.

    Raises:
        ValueError: the winner does not come from a run.
    """
    if (config := winner.config) is None:
        raise ValueError("the profile comes from no run, so its space is unknown; export a point of a run")
    return space_of(winner.model, config.space)


def check_budget(winner: Winner, space: Space, profile: Profile, change: str) -> None:
    """Refuse a changed profile whose cost exceeds a limit of the winner's budget.

    Nothing is checked if the winner's profile names no budget of the run.

    Args:
        winner: the winner before the change.
        space: the space that the run searched.
        profile: the changed profile.
        change: the change in words, with which the message begins.

    Raises:
        ValueError: a cost exceeds its limit.
    """
    budget = _budget(winner)
    if budget is None:
        return
    for kind, limit in budget.limits(space).items():
        cost = space.cost(profile, kind)
        if cost > limit:
            now, most = (_figure(in_units(kind, value, space)) for value in (cost, limit))
            raise ValueError(
                f"{change} brings {kind} to {now}, above the {most} of the budget {budget.name!r}; search with "
                "space.units.tie=vllm, or use --fused keep"
            )


def byte_limit(winner: Winner, name: str) -> int | None:
    """Return the most bytes that the winner's budget allows.

    The result is None if the winner has no budget in bytes, or if the run counts the bytes of another format than
    `name`.
    """
    budget = _budget(winner)
    if budget is None or budget.bytes is None or winner.counted != name:
        return None
    return parse_bytes(budget.bytes)


def check_rule(
    tensors: Sequence[PlannedTensor], compression: Compression, rule: SizeRule, dense_bits: int, found: int
) -> None:
    """Compare the bytes of the written tensors with the size rule.

    Args:
        tensors: all tensors that were written.
        compression: the model with the levels of its layers.
        rule: size rule of a layer that has a level; other tensors count with their own bytes.
        dense_bits: number of bits of a weight in the dense model.
        found: number of bytes of tensors in the files.

    Raises:
        OSError: the bytes in the files differ from those of the rule.
    """
    layers = {tensor.layer for tensor in tensors} - {""}
    ruled = sum(tensor.bytes for tensor in tensors if not tensor.layer)
    for layer in layers:
        linear = compression.linears[layer]
        shape = (linear.out_features, linear.in_features)
        ruled += rule(parse_label(compression.levels[layer]), shape, dense_bits)
    if found != ruled:
        raise OSError(
            f"the files hold {found:,} bytes of tensors, but the size rules say {ruled:,}; check the disk and export again"
        )


def check_limit(found: int, limit: int | None, zeroed: Sequence[str]) -> None:
    """Refuse files whose tensors take more bytes than the budget allows.

    Args:
        found: number of bytes of tensors in the files.
        limit: most bytes that the budget allows; None if there is no budget in bytes.
        zeroed: dropped branches that are written as zeros; the message names them as a cause.

    Raises:
        ValueError: the files exceed the limit.
    """
    if limit is not None and found > limit:
        cause = f": {', '.join(zeroed)} are dropped but written as zeros" if zeroed else ""
        raise ValueError(
            f"the files hold {found:,} bytes of tensors, above the {limit:,} of the budget{cause}; export a smaller "
            "budget" + (" or search with space.drop=blocks" if zeroed else "")
        )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1e6 else f"{value:.6g}"


def _budget(winner: Winner) -> BudgetConfig | None:
    """Return the run's budget that the winner's profile names, or None if there is none."""
    budgets = winner.config.budgets if winner.config else ()
    return next((budget for budget in budgets if budget.name == winner.profile.budget), None)
