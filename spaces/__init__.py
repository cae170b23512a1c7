"""What may vary: model structure, units, levels, costs and profiles; the level database and its builders."""

from .space import Limits, Profile, Space
from .unit import Level, Unit

__all__ = ["Level", "Limits", "Profile", "Space", "Unit"]
