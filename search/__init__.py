"""Search for good profiles: search methods, the Pareto archive, the study, run folders and configuration."""
