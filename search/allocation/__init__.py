"""Exact allocation: the best profile when the errors of units add up."""
