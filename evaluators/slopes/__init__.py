"""Slopes: how the fitness changes with every level of every unit, from backward passes."""
