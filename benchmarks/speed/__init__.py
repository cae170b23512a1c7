"""Timings of the evaluator, the level builders and the driver."""
