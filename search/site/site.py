"""Where a run's heavy work is done: in this process, or by workers elsewhere."""

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
    """Opens a run's model, checks it, builds levels and gives workers.

    Attributes:
        assembly: the run as it is there: no `auto` left in what decides a value.
        environment: versions and hardware there.
    """

    assembly: Assembly
    environment: dict[str, Any]

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that decides a value where the work is done."""

    @property
    def fingerprint(self) -> str:
        """Digest of the recipe."""

    @property
    def description(self) -> str:
        """One line for people: how much runs at once, and what the memory is used for."""

    def check(self) -> Sanity:
        """Run the dense model on a few sequences (`check_dense`)."""

    def build(self, progress: Say) -> None:
        """Fill the level database; `progress` is called with each finished part."""

    def pool(self, say: Say = lambda text: None) -> WorkerPool:
        """The workers, once levels are built; `say` is told of those that come and go."""

    def close(self) -> None:
        """Release everything, once the pool is closed."""


class LocalSite:
    """This process."""

    def __init__(self, assembly: Assembly) -> None:
        self.assembly = assembly
        self.environment = environment()

    @cached_property
    def evaluator(self) -> PopulationEvaluator:
        """Made when it is needed, which building levels does not."""
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
        """One line on what runs at once and how memory is used."""
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
        """Release nothing: the pool has the evaluator."""


def open_site(config: RunConfig, databases: Path) -> Site:
    """Where `config` says that work is done, with the model open.

    Raises:
        ValueError: model, text, levels, budgets or workers that cannot work, before any heavy work.
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
