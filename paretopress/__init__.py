"""Search-based compression of language models: from a pretrained model to its Pareto front."""
