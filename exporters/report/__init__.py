"""The report of a run: an HTML page with the front, its profiles and its figures."""
