"""Comparisons of search methods."""
