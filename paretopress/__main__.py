"""Entry point of `python -m paretopress`."""

from .cli import main

main()
