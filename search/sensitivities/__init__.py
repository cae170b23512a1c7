"""Scores that predict the error of each level, their comparison with measurements, and profiles allocated by them."""
