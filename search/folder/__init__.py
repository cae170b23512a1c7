"""The folder that a run leaves, and the lock on it."""
