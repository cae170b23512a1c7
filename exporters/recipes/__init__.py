"""Recipes without weights, for other compression programs."""
