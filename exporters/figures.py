"""Numbers as text, for the report and for messages."""

_SIZES = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB"))


def figure(value: float | None, digits: int = 4) -> str:
    """Format a number with `digits` significant digits, or None as a dash."""
    return "–" if value is None else f"{value:.{digits}g}"


def whole(value: float) -> str:
    """Format a number rounded to a whole one, with a narrow space between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


def cost_figure(value: float) -> str:
    """Format a cost: whole numbers from 10,000 on with all digits, other numbers with six significant digits."""
    return whole(value) if float(value).is_integer() and abs(value) >= 10_000 else f"{value:.6g}"


def size(value: float | None) -> str:
    """Format a number of bytes with a unit that is a power of 1000, or None as a dash."""
    if value is None:
        return "–"
    return next(
        (f"{value / factor:.4g} {unit}" for factor, unit in _SIZES if value >= factor), f"{value:.0f} B"
    )


def percent(value: float | None) -> str:
    """Format a fraction as a percentage with its sign, or None as a dash."""
    return "–" if value is None else f"{100 * value:+.1f} %".replace("-", "−")
