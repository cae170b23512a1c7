"""Measurements of Ray workers: speed-up, failures, equal results."""
