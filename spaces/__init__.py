"""The space of compressed models: model structure, units, levels, costs, profiles and the level database."""

from .space import Limits, Profile, Space
from .unit import Level, Unit

__all__ = ["Level", "Limits", "Profile", "Space", "Unit"]
