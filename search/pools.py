"""Where a run's evaluations run, as its configuration says."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluators.packing import Sequences
from ..evaluators.population import PopulationEvaluator
from ..workers.configuration import LocalConfig
from ..workers.pool import LocalPool, WorkerPool
from .assembly import Assembly, assemble
from .configuration import RunConfig
from .settings import differences

if TYPE_CHECKING:
    from ..workers.ray_pool import Share


def make_pool(
    assembly: Assembly, evaluator: PopulationEvaluator, say: Callable[[str], None] = lambda text: None
) -> WorkerPool:
    """The workers of a run; `say` is told of those that come and go.

    Raises:
        ValueError: they cannot work; the message says why.
    """
    config = assembly.config
    if isinstance(config.workers, LocalConfig):
        return LocalPool(evaluator)
    from ..workers.ray_pool import RayPool

    devices = config.evaluation.device.split(",") if config.evaluation.device.startswith("cuda") else []
    gpus = float(len(devices)) if config.workers.gpus is None else config.workers.gpus
    cpus = 0.0 if gpus else float(config.evaluation.threads)
    settings = config.workers.model_copy(
        update={"gpus": gpus, "cpus": cpus if config.workers.cpus is None else config.workers.cpus}
    )
    opened = partial(
        open_evaluator, _elsewhere(config), assembly.databases.resolve(), assembly.data, evaluator.recipe
    )
    return RayPool(opened, assembly.space, evaluator.runner.micro_batch, settings, say)


def check_workers(config: RunConfig) -> None:
    """Refuse workers that this installation cannot reach.

    Raises:
        ValueError: they need a package that is not installed.
    """
    if isinstance(config.workers, LocalConfig):
        return
    try:
        import_module("..workers.ray_pool", __package__)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"workers: ray needs {error.name}; pip install 'paretopress[ray]', or use workers: local"
        ) from error


def open_evaluator(
    config: Mapping[str, Any],
    databases: Path,
    data: Mapping[str, Sequences],
    recipe: Mapping[str, Any],
    share: "Share",
) -> PopulationEvaluator:
    """Open model and levels in another process, perhaps on another machine.

    Args:
        config: resolved, as JSON values.
        databases: where the levels are, complete.
        data: the sequences.
        recipe: what decides a value where the search runs.
        share: of this machine's memory.

    Raises:
        ValueError: something else decides a value here.
        FileNotFoundError: model or levels are not here.
    """
    assembly = assemble(
        RunConfig.model_validate(config), databases, data, host=share.host, device=share.device
    )
    _compare(recipe["recipe"], assembly.recipe)
    if not assembly.database.path.is_dir():
        raise FileNotFoundError(f"no levels at {assembly.database.path}; use a folder that every node sees")
    evaluator = assembly.evaluator()
    _compare(recipe, evaluator.recipe)
    return evaluator


def _compare(there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    if changed := differences(there, here):
        named = "; ".join(f"{name} is {new}, not {old}" for name, (old, new) in changed.items())
        raise ValueError(
            f"its values would not be comparable: {named}; use nodes of one kind with the same libraries"
        )


def _elsewhere(config: RunConfig) -> dict[str, Any]:
    """The configuration for a process with another working directory and only its own GPUs."""
    content = config.model_dump(mode="json")
    if Path(config.model).is_dir():
        content["model"] = str(Path(config.model).resolve())
    if config.space.latency:
        content["space"]["latency"] = str(Path(config.space.latency).resolve())
    if config.evaluation.device.startswith("cuda"):
        count = len(config.evaluation.device.split(","))
        content["evaluation"]["device"] = ",".join(f"cuda:{n}" for n in range(count))
    return content
