"""Block runners, which run a model block by block, forwards and backwards, on one device or several."""
