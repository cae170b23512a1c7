"""Evaluators without a model and a pool of simulated workers, for tests and benchmarks."""
