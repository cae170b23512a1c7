"""Where evaluations run."""

from .landscape import Landscape
from .pool import LocalPool, WorkerPool
from .replay import Replay
from .simulated import SimulatedPool

__all__ = ["Landscape", "LocalPool", "Replay", "SimulatedPool", "WorkerPool"]
