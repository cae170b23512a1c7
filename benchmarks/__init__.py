"""Commands that measure: run one with `python -m benchmarks.FOLDER.NAME --help`."""
