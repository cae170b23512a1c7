"""Measurements of Ray workers: speed-up, behaviour when processes are killed, and equality of results."""
