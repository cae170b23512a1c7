"""The other search methods: evolution, dynamic programming, greedy, random and Optuna."""
