"""The population evaluator, the scoring of candidates against the teacher, and the check of the dense model."""
