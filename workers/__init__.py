"""Where evaluations run."""

from .landscape import Landscape, Replay
from .pool import LocalPool, WorkerPool
from .simulated import SimulatedPool

__all__ = ["Landscape", "LocalPool", "Replay", "SimulatedPool", "WorkerPool"]
