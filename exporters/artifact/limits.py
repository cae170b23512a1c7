"""The budget that an exported profile was found for, by the size rules of the search."""

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
    """The space that the winner's run searched.

    Raises:
        ValueError: the winner comes from no run.
    """
    if (config := winner.config) is None:
        raise ValueError("the profile comes from no run, so its space is unknown; export a point of a run")
    return space_of(winner.model, config.space)


def check_budget(winner: Winner, space: Space, profile: Profile, change: str) -> None:
    """Refuse a profile that a change has made dearer than the winner's budget.

    A profile file that names no budget of the run has none.

    Raises:
        ValueError: a limit is exceeded; `change` begins the message.
    """
    budget = _budget(winner)
    if budget is None:
        return
    for kind, limit in budget.limits(space).items():
        cost = space.cost(profile, kind)
        if cost > limit:
            now, most = (_figure(in_units(kind, value, space)) for value in (cost, limit))
            raise ValueError(
                f"{change} makes {kind} {now}, above {most} of the budget {budget.name!r}; search with "
                "space.units.tie=vllm, or use --fused keep"
            )


def byte_limit(winner: Winner, name: str) -> int | None:
    """Bytes that the winner's budget allows, if it counts those of files in the format `name`."""
    budget = _budget(winner)
    if budget is None or budget.bytes is None or winner.counted != name:
        return None
    return parse_bytes(budget.bytes)


def check_rule(
    tensors: Sequence[PlannedTensor], compression: Compression, rule: SizeRule, dense_bits: int, found: int
) -> None:
    """Compare `found`, the tensors' bytes in written files, with the size rule.

    Raises:
        OSError: the bytes differ from those of the rule.
    """
    layers = {tensor.layer for tensor in tensors} - {""}
    ruled = sum(tensor.bytes for tensor in tensors if not tensor.layer)
    for layer in layers:
        linear = compression.linears[layer]
        shape = (linear.out_features, linear.in_features)
        ruled += rule(parse_label(compression.levels[layer]), shape, dense_bits)
    if found != ruled:
        raise OSError(
            f"the files hold {found:,} bytes of tensors, the size rules say {ruled:,}; check the disk and export again"
        )


def check_limit(found: int, limit: int | None, zeroed: Sequence[str]) -> None:
    """Refuse files whose tensors are above the budget in bytes, if there is one.

    Raises:
        ValueError: they are; branches that were dropped but are written as zeros (`zeroed`) may be why.
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
    budgets = winner.config.budgets if winner.config else ()
    return next((budget for budget in budgets if budget.name == winner.profile.budget), None)
