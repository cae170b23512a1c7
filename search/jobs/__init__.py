"""What commands do: plan a search, run it, refit its points, measure a model."""
