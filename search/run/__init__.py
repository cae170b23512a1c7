"""The configuration of a run, and the objects that are built from it."""
