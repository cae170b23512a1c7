"""Export formats that `transformers` loads: dense weights, packed integers, and models without dropped branches."""
