"""Checkpoints that `transformers` loads: dense, packed integers, and without dropped branches."""
