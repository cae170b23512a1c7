"""The search methods besides `frontier`: evolution, dynamic programming, greedy, random and Optuna."""
