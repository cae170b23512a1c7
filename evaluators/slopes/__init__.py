"""Slopes: predictions from backward passes of how the fitness changes with every level of every unit."""
