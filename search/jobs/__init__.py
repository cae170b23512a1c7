"""The jobs behind the commands: plan a search, run it, refit its points, measure a model."""
