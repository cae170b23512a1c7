"""Comparisons of search methods by the quality that they reach with equal tokens."""
