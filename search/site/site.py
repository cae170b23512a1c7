"""The interface of sites, where levels are built and profiles evaluated, and the site that is this process."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from ...evaluators.population.population import PopulationEvaluator
from ...evaluators.population.sanity import Sanity, check_dense
from ...workers.configuration import LocalConfig
from ...workers.pool import LocalPool, WorkerPool
from ..run.assembly import Assembly, assemble
from ..run.configuration import RunConfig
from .environment import environment

Say = Callable[[str], None]


class Site(Protocol):
    """The place of a run's heavy work, which opens the model, checks it, builds levels and provides workers.

    Attributes:
        assembly: objects of the run, with every `auto` that can change a value resolved for the site.
        environment: versions and hardware of the site as JSON values.
    """

    assembly: Assembly
    environment: dict[str, Any]

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that decides a value at the site."""

    @property
    def fingerprint(self) -> str:
        """The digest of the recipe."""

    @property
    def description(self) -> str:
        """One line for the user on how much runs at once and how memory is used."""

    def check(self) -> Sanity:
        """Run the dense model on a few sequences, as `check_dense` does."""

    def build(self, progress: Say) -> None:
        """Fill the level database and call `progress` with the name of each finished part."""

    def pool(self, say: Say = lambda text: None) -> WorkerPool:
        """Start the workers, once levels are built, and call `say` with messages about workers that come and go."""

    def close(self) -> None:
        """Release all resources, once the pool is closed."""


class LocalSite:
    """The site that is this process, which is its only worker.

    Args:
        assembly: objects of the run.
    """

    def __init__(self, assembly: Assembly) -> None:
        self.assembly = assembly
        self.environment = environment()

    @cached_property
    def evaluator(self) -> PopulationEvaluator:
        """The evaluator of this process, built at first use because building levels does not need it."""
        return self.assembly.evaluator()

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of the evaluator in this process."""
        return self.evaluator.recipe

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the evaluator in this process."""
        return self.evaluator.fingerprint

    @property
    def description(self) -> str:
        """One line for the user on how many tokens run at once and how memory is used."""
        return self.evaluator.describe()

    def check(self) -> Sanity:
        """Run the dense model on a few sequences."""
        return check_dense(self.evaluator, self.assembly.structure.ends.embedding.out_features)

    def build(self, progress: Say) -> None:
        """Fill the level database in this process."""
        self.assembly.build(progress)

    def pool(self, say: Say = lambda text: None) -> WorkerPool:
        """Return a pool of this one process."""
        del say
        return LocalPool(self.evaluator)

    def close(self) -> None:
        """Do nothing, because this site has no workers to end."""


def open_site(config: RunConfig, databases: Path) -> Site:
    """Open the site that `config.workers` selects, with the model open.

    Args:
        config: configuration of the run.
        databases: folder of the level databases.

    Raises:
        ValueError: model, text, levels, budgets or workers cannot work; this is found before any heavy work.
    """
    if isinstance(config.workers, LocalConfig):
        return LocalSite(assemble(config, databases))
    try:
        from .ray_site import RaySite
    except ModuleNotFoundError as error:
        raise ValueError(
            f"workers: ray needs {error.name}; pip install 'paretopress[ray]', or use workers: local"
        ) from error
    return RaySite(config, config.workers, databases)
