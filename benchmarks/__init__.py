"""Commands that measure speed, memory and quality; `python -m benchmarks.FOLDER.NAME --help` describes each of them."""
