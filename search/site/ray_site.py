"""The site of a run whose workers are on a Ray cluster; this process needs neither a GPU nor much memory."""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...evaluators.population.population import PopulationEvaluator
from ...evaluators.population.sanity import Sanity
from ...evaluators.runner.numerics import EvaluationConfig
from ...evaluators.text.packing import Sequences
from ...spaces.storage.files import digest
from ...workers.cluster.ray_cluster import (
    Share,
    connect,
    disconnect,
    fetch,
    fewest_cores,
    has_gpus,
    share_out,
)
from ...workers.cluster.ray_errand import RayErrands
from ...workers.cluster.ray_pool import RayPool
from ...workers.configuration import RayConfig
from ..folder.settings import differences
from ..run.assembly import Assembly, assemble
from ..run.configuration import RunConfig
from .sending import MOST, Files, elsewhere, packed, unpacked
from .site import LocalSite, Say

Data = Mapping[str, Sequences]
Levels = Mapping[str, bytes] | None
"""Content of the level database's files by name, for nodes that do not see its folder; None if it is too large."""


_LATE = 60.0  # seconds for which a network file system may still show an old state of a folder


@dataclass(frozen=True)
class Folders:
    """The places where a worker finds the files of a run.

    Attributes:
        databases: folder of the level databases.
        sent: function that returns the files of the model and of the latency table, for a node that lacks them.
    """

    databases: Path
    sent: Callable[[], Mapping[str, Files]]


@dataclass(frozen=True)
class _Found:
    """The facts that one worker reports about its node: settings, recipe, description and environment."""

    evaluation: EvaluationConfig
    numerics: Mapping[str, Any]
    recipe: dict[str, Any]
    description: str
    environment: dict[str, Any]


class RaySite:
    """Workers on a Ray cluster. One of them opens the model, checks it and builds levels, then all evaluate profiles.

    Args:
        config: configuration of the run.
        workers: settings of the workers, from the section `workers` of the configuration.
        databases: folder of the level databases; levels are sent to nodes that do not see it.

    Attributes:
        assembly: objects of the run in this process, with the evaluation settings and numerics of the worker.
        recipe: everything that decides a value in the worker.
        fingerprint: digest of the recipe.
        description: one line on what the worker evaluates at once and how it uses memory.
        environment: versions and hardware of the worker's node.

    Raises:
        ValueError: there is no cluster, or the run cannot work in this process or in the worker.
        TimeoutError: no worker could start in time.
    """

    def __init__(self, config: RunConfig, workers: RayConfig, databases: Path) -> None:
        outline = assemble(config, databases, here=False)
        self._own = connect(workers.address)
        self._errands: RayErrands[LocalSite] | None = None
        try:
            self._workers, evaluation = place(
                config.evaluation, workers, gpus=has_gpus(), cores=fewest_cores()
            )
            there = elsewhere(config.model_copy(update={"evaluation": evaluation}))
            self._folders = Folders(databases.resolve(), partial(fetch, share_out(packed(there))))
            self._errands = RayErrands(partial(_open, there, self._folders, outline.data), self._workers)
            found = self._errands.call(_look)
            self.assembly: Assembly = replace(
                outline,
                config=config.model_copy(update={"evaluation": found.evaluation}),
                numerics=found.numerics,
            )
            _compare(found.recipe["recipe"], self.assembly.recipe)
        except BaseException:
            self.close()
            raise
        self.recipe = found.recipe
        self.fingerprint = digest(found.recipe)
        self.description = found.description
        self.environment = found.environment

    def check(self) -> Sanity:
        """Let the worker run the dense model on a few sequences."""
        return self._hand.call(_check)

    @property
    def _hand(self) -> RayErrands[LocalSite]:
        assert self._errands is not None
        return self._errands

    def build(self, progress: Say) -> None:
        """Let the worker fill the level database, and send the levels between the worker and this process if needed.

        Args:
            progress: function that is called with the name of each finished part.

        Raises:
            ValueError: the worker does not see the folder of this process and the levels are too large to send, or
                levels are missing afterwards.
        """
        database = self.assembly.database
        if self.assembly.level_bytes > MOST and not self._shared():
            raise ValueError(
                f"{self.assembly.level_bytes:,} bytes of levels are too large to send (limit {MOST >> 20} MiB), and the node "
                f"that would build them does not see {self.assembly.databases} of this machine; use a run folder that "
                "every node sees"
            )
        lacking = self._hand.call(_lacking) if database.errors() else 0
        known = _dumped(self.assembly) if lacking else None
        self._hand.call(partial(_build, known, self.recipe), progress)
        database.refresh()
        if _awaited(self.assembly) and (content := self._hand.call(_levels)):
            database.restore(content)
        if missing := _missing(self.assembly):
            raise ValueError(
                f"levels of {missing} layers were built, but are not in {database.path}; build them again"
            )

    def _shared(self) -> bool:
        """Tell whether the worker sees a file that this process writes to the folder of the level databases."""
        folder = self.assembly.databases
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / f".seen-{secrets.token_hex(8)}"
        mark.touch()
        try:
            return self._hand.call(partial(_sees, mark.name, _LATE))
        finally:
            mark.unlink()

    def pool(self, say: Say = lambda text: None) -> RayPool:
        """Start the workers, of which the first is the one that built the levels.

        Args:
            say: function that gets messages about workers that come and go.
        """
        assembly = self.assembly
        self._sent = share_out(_dumped(assembly))
        opened = partial(
            open_evaluator,
            elsewhere(assembly.config),
            self._folders,
            assembly.data,
            self.recipe,
            partial(fetch, self._sent),
        )
        grain = int(assembly.config.evaluation.micro_batch)
        return RayPool(opened, assembly.space, grain, self._workers, say, self._hand.release())

    def close(self) -> None:
        """End the worker that built the levels and disconnect from the cluster; the pool must be closed before."""
        if self._errands is not None:
            self._errands.dismiss()
        if self._own:
            disconnect()


def place(
    evaluation: EvaluationConfig, workers: RayConfig, *, gpus: bool, cores: int
) -> tuple[RayConfig, EvaluationConfig]:
    """Decide how many GPUs and CPUs each worker gets, and its device and threads.

    Args:
        evaluation: settings of evaluations from the configuration.
        workers: settings of the workers from the configuration.
        gpus: whether the cluster has any GPU.
        cores: number of CPUs of the smallest node. The number of threads changes the last bits of values, so it must
            fit every node.

    Returns:
        The settings of the workers with `gpus` and `cpus` set, and those of evaluations with device and threads set.

    Raises:
        ValueError: the device names several GPUs, and `workers.gpus` is another number.
    """
    device = evaluation.device
    if device == "auto":
        device = "cuda" if (gpus if workers.gpus is None else workers.gpus) else "cpu"
    devices = device.split(",") if device.startswith("cuda") else []
    each = float(len(devices)) if workers.gpus is None else workers.gpus
    if len(devices) > 1 and each != len(devices):
        raise ValueError(
            f"evaluation.device {device!r} names {len(devices)} GPUs, but workers.gpus is {each:g}; give only one of the keys"
        )
    threads = evaluation.threads
    if threads == "auto":
        threads = max(int(cores if workers.cpus is None or each else workers.cpus), 1)
    cpus = 0.0 if each else float(threads)
    placed = {"gpus": each, "cpus": cpus if workers.cpus is None else workers.cpus}
    if devices:
        device = ",".join(f"cuda:{n}" for n in range(int(each))) if each > 1 else "cuda"
    return (
        workers.model_copy(update=placed),
        evaluation.model_copy(update={"device": device, "threads": threads}),
    )


def open_evaluator(
    config: Mapping[str, Any],
    folders: Folders,
    data: Data,
    recipe: Mapping[str, Any],
    levels: Callable[[], Levels],
    share: Share,
    held: LocalSite | None = None,
) -> PopulationEvaluator:
    """Open model and levels in a worker, which may be on another machine, and return its evaluator.

    Args:
        config: resolved configuration as JSON values.
        folders: places of the run's files; levels that are sent are written there.
        data: tokenised sequences of each data set by name.
        recipe: recipe of the evaluator in the worker that built the levels.
        levels: function that returns the level database's files; called only if this machine does not see them.
        share: share of this machine's memory that the worker may use.
        held: site that this worker has open already, or None.

    Raises:
        ValueError: the recipe of this worker differs, so that its values would not be comparable.
        FileNotFoundError: the model or the levels are not on this machine.
    """
    site = held or _open(config, folders, data, share)
    assembly = site.assembly
    _compare(recipe["recipe"], assembly.recipe)
    if _awaited(assembly) and (content := levels()):
        assembly.database.restore(content)
    if _missing(assembly):
        raise FileNotFoundError(
            f"there are no levels at {assembly.database.path}; use a folder that every node sees"
        )
    _compare(recipe, site.recipe)
    return site.evaluator


def _compare(there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse two recipes that differ; the message names the differences."""
    if changed := differences(there, here):
        named = "; ".join(f"{name} is {new}, not {old}" for name, (old, new) in changed.items())
        raise ValueError(
            f"the worker's values would not be comparable: {named}; use nodes of one kind with the same libraries"
        )


def _open(config: Mapping[str, Any], folders: Folders, data: Data, share: Share) -> LocalSite:
    """Open the run in a worker, with the files that its machine lacks taken from those that were sent."""
    content = unpacked(config, folders.databases.parent / "sent", folders.sent)
    run = RunConfig.model_validate(content)
    return LocalSite(assemble(run, folders.databases, data, host=share.host, device=share.device))


def _look(site: LocalSite, say: Say) -> _Found:
    del say
    assembly = site.assembly
    return _Found(
        assembly.config.evaluation, assembly.numerics, site.recipe, site.description, site.environment
    )


def _check(site: LocalSite, say: Say) -> Sanity:
    del say
    return site.check()


def _build(known: Levels, recipe: Mapping[str, Any], site: LocalSite, say: Say) -> None:
    _compare(recipe, site.recipe)
    database = site.assembly.database
    if known:
        database.restore(known)
    database.verify()
    site.build(say)


def _sees(name: str, seconds: float, site: LocalSite, say: Say) -> bool:
    """Tell whether a new file in the folder of the level databases becomes visible within `seconds`."""
    del say
    return _waited((site.assembly.databases / name).exists, seconds)


def _lacking(site: LocalSite, say: Say) -> int:
    del say
    return _missing(site.assembly)


def _levels(site: LocalSite, say: Say) -> Levels:
    del say
    return _dumped(site.assembly)


def _dumped(assembly: Assembly) -> Levels:
    """Return the level database's files, or None if they are too large to send."""
    return assembly.database.dump() if assembly.database.bytes <= MOST else None


def _missing(assembly: Assembly) -> int:
    """Return the number of layers whose levels are not in the database that this process sees."""
    return len(assembly.labels.keys() - assembly.database.errors().keys())


def _awaited(assembly: Assembly) -> int:
    """Return the number of layers that are still missing after waiting for a shared folder to show new files."""

    def settled() -> bool:
        assembly.database.refresh()
        return not (_missing(assembly) and assembly.database.path.is_dir())

    _waited(settled, _LATE)
    return _missing(assembly)


def _waited(done: Callable[[], bool], seconds: float) -> bool:
    """Call `done` every second until it returns True or `seconds` have passed, and return its last answer."""
    until = time.monotonic() + seconds
    while not (found := done()) and time.monotonic() < until:
        time.sleep(1.0)
    return found
