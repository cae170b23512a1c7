"""Settings of a simulation that are shares."""


def check_share(name: str, value: float, most: float = 1.0) -> None:
    """Refuse what is outside 0 to `most`.

    Raises:
        ValueError: it is.
    """
    if not 0 <= value <= most:
        raise ValueError(f"{name} {value} is outside 0 to {most:g}; give a share within it")
