"""Numbers as the report writes them."""

_SIZES = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB"))


def figure(value: float | None, digits: int = 4) -> str:
    """`digits` significant digits, or a dash."""
    return "–" if value is None else f"{value:.{digits}g}"


def whole(value: float) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,.0f}".replace(",", "\u202f")


def cost_figure(value: float) -> str:
    """A cost: whole numbers whole, others to six digits."""
    return whole(value) if float(value).is_integer() and abs(value) >= 10_000 else f"{value:.6g}"


def size(value: float | None) -> str:
    """Bytes with a unit of powers of 1000."""
    if value is None:
        return "–"
    return next(
        (f"{value / factor:.4g} {unit}" for factor, unit in _SIZES if value >= factor), f"{value:.0f} B"
    )


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, two units at most."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def percent(value: float | None) -> str:
    """A signed change, or a dash."""
    return "–" if value is None else f"{100 * value:+.1f} %".replace("-", "−")
