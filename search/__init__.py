"""Who proposes and what is kept: searchers, the Pareto archive, the study, checkpoints, configuration."""
