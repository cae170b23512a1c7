"""Measurements that take minutes; commands, not tests: `python -m tests.benchmarks.methods --help`."""
