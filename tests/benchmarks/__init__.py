"""Measurements that take minutes; commands, not tests: `python -m benchmarks.methods.methods --help`."""
