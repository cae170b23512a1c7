"""Simulated evaluators and clusters, for tests and benchmarks."""
