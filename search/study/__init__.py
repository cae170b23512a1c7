"""The loop of a search, its archive, its looks at validation text, and the final choice of profiles."""
