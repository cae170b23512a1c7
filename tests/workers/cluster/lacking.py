"""A worker whose module needs a package that nodes with LACKING in their environment do not have."""

import os

from paretopress.workers.cluster.ray_worker import Worker

if "LACKING" in os.environ:
    raise ModuleNotFoundError("No module named 'optuna'", name="optuna")


class Demanding(Worker):
    """A worker."""
