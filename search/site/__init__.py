"""The site of a run, where levels are built and profiles evaluated: this process or a Ray cluster."""
