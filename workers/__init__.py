"""Where evaluations run."""

from .pool import LocalPool, WorkerPool

__all__ = ["LocalPool", "WorkerPool"]
