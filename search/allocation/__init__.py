"""Exact allocation: the best profile within a budget if the errors of the units add up."""
