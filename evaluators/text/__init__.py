"""The text of a run, its sources, its tokens, and the sequences that are made of them."""
