"""Levels: their labels, their storage, and the builders that make them from a weight and a Hessian."""
