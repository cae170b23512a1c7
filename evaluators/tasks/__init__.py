"""Scores of whole models on the tasks of lm-eval."""
