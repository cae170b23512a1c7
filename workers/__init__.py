"""Where evaluations run."""

from .pool import LocalPool, WorkerPool
from .simulation.journal_replay import Replay
from .simulation.landscape import Landscape
from .simulation.simulated import SimulatedPool

__all__ = ["Landscape", "LocalPool", "Replay", "SimulatedPool", "WorkerPool"]
