"""Search-based compression of language models: from a pretrained model to its Pareto front.

Public names are imported when they are first used, so that `import paretopress` loads none of its subpackages.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .exporters.export import export_run
    from .search.jobs.job import run
    from .search.run.configuration import RunConfig, load_config
    from .spaces.space import Profile, Space

__all__ = ["Profile", "RunConfig", "Space", "export_run", "load_config", "run"]

_PLACES = {
    "Profile": "spaces.space",
    "RunConfig": "search.run.configuration",
    "Space": "spaces.space",
    "export_run": "exporters.export",
    "load_config": "search.run.configuration",
    "run": "search.jobs.job",
}


def __getattr__(name: str) -> object:
    """Import a public name from the module that defines it, and return it."""
    if name not in _PLACES:
        raise AttributeError(f"module 'paretopress' has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
