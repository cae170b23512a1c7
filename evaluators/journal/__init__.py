"""The journal: the append-only file of all evaluations of a run, which serves as cache, log and history."""
