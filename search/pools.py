"""Where a run's evaluations run, as its configuration says."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..evaluators.packing import Sequences
from ..evaluators.population import PopulationEvaluator
from ..workers.configuration import LocalConfig
from ..workers.pool import LocalPool, WorkerPool
from .assembly import Assembly, assemble
from .configuration import RunConfig
from .settings import differences


def make_pool(
    assembly: Assembly, evaluator: PopulationEvaluator, say: Callable[[str], None] = lambda text: None
) -> WorkerPool:
    """The workers of a run; `say` is told of those that come and go.

    Raises:
        ValueError: they cannot work; the message says why.
    """
    config = assembly.config
    check_workers(config)
    if isinstance(config.workers, LocalConfig):
        return LocalPool(evaluator)
    from ..workers.ray_pool import RayPool

    on_gpu = config.evaluation.device.startswith("cuda")
    gpus = float(on_gpu) if config.workers.gpus is None else config.workers.gpus
    cpus = 0.0 if gpus else float(config.evaluation.threads)
    settings = config.workers.model_copy(
        update={"gpus": gpus, "cpus": cpus if config.workers.cpus is None else config.workers.cpus}
    )
    content = config.model_dump(mode="json") | {"model": _absolute(config.model)}
    databases = assembly.databases.resolve()
    opened = partial(open_evaluator, content, databases, assembly.data, evaluator.recipe)
    return RayPool(opened, assembly.space, evaluator.runner.micro_batch, settings, say)


def check_workers(config: RunConfig) -> None:
    """Refuse workers that this installation cannot reach.

    Raises:
        ValueError: they need a package that is not installed.
    """
    if isinstance(config.workers, LocalConfig):
        return
    try:
        from ..workers import ray_pool as ray_pool
    except ModuleNotFoundError as error:
        raise ValueError(
            f"workers: ray needs {error.name}; pip install 'paretopress[ray]', or use workers: local"
        ) from error


def open_evaluator(
    config: Mapping[str, Any], databases: Path, data: Mapping[str, Sequences], recipe: Mapping[str, Any]
) -> PopulationEvaluator:
    """Open model and levels in another process, perhaps on another machine.

    Args:
        config: resolved, as JSON values.
        databases: where the levels are, complete.
        data: the sequences.
        recipe: what decides a value where the search runs.

    Raises:
        ValueError: something else decides a value here.
        FileNotFoundError: model or levels are not here.
    """
    assembly = assemble(RunConfig.model_validate(config), databases, data)
    if not assembly.database.path.is_dir():
        raise FileNotFoundError(f"no levels at {assembly.database.path}; use a folder that every node sees")
    evaluator = assembly.evaluator()
    if changed := differences(recipe, evaluator.recipe):
        named = "; ".join(f"{name} is {here}, not {there}" for name, (there, here) in changed.items())
        raise ValueError(
            f"its values would not be comparable: {named}; use nodes of one kind with the same libraries"
        )
    return evaluator


def _absolute(model: str) -> str:
    """A folder by its whole path, because workers have working directories of their own."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model
