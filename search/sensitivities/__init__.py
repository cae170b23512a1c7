"""Scores of levels, and what they are worth as predictions."""
