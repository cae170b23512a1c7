"""Worker pools, which run evaluations in this process, on a Ray cluster or in a simulation."""

from .pool import LocalPool, WorkerPool
from .simulation.journal_replay import Replay
from .simulation.landscape import Landscape
from .simulation.simulated import SimulatedPool

__all__ = ["Landscape", "LocalPool", "Replay", "SimulatedPool", "WorkerPool"]
