"""Heavy work by workers on a Ray cluster; this process needs neither their hardware nor their memory."""

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
"""The level database's files, for nodes that do not see its folder; None where they are too large."""


_LATE = 60.0  # seconds that a network file system may keep what it knew of a folder


@dataclass(frozen=True)
class Folders:
    """Where a worker finds files.

    Attributes:
        databases: folder of the level databases.
        sent: what it may not see.
    """

    databases: Path
    sent: Callable[[], Mapping[str, Files]]


@dataclass(frozen=True)
class _Found:
    """What one worker says of its place."""

    evaluation: EvaluationConfig
    numerics: Mapping[str, Any]
    recipe: dict[str, Any]
    description: str
    environment: dict[str, Any]


class RaySite:
    """Workers on a Ray cluster: one of them opens the model, checks it and builds levels, then all evaluate.

    Args:
        config: of the run.
        workers: of the run, its `workers: ray`.
        databases: of the levels; where a node does not see the folder, they are sent.

    Raises:
        ValueError: no cluster, or something about the run that cannot work, here or there.
        TimeoutError: no worker could start.
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
        """Have the worker run the dense model on a few sequences."""
        return self._hand.call(_check)

    @property
    def _hand(self) -> RayErrands[LocalSite]:
        assert self._errands is not None
        return self._errands

    def build(self, progress: Say) -> None:
        """Have the worker fill the level database, and bring the levels where they are needed.

        Raises:
            ValueError: the worker has another folder than this process, and the levels are too large to send.
        """
        database = self.assembly.database
        if self.assembly.level_bytes > MOST and not self._shared():
            raise ValueError(
                f"{self.assembly.level_bytes:,} bytes of levels are too large to send ({MOST >> 20} MiB), and "
                f"{self.assembly.databases} is another folder where they would be built; use a run folder that every "
                "node sees"
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
        """Whether the worker sees a file that is written here."""
        folder = self.assembly.databases
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / f".seen-{secrets.token_hex(8)}"
        mark.touch()
        try:
            return self._hand.call(partial(_sees, mark.name, _LATE))
        finally:
            mark.unlink()

    def pool(self, say: Say = lambda text: None) -> RayPool:
        """Start the workers; the one that built the levels is the first of them."""
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
        """End the worker that built, and leave the cluster, once the pool is closed."""
        if self._errands is not None:
            self._errands.dismiss()
        if self._own:
            disconnect()


def place(
    evaluation: EvaluationConfig, workers: RayConfig, *, gpus: bool, cores: int
) -> tuple[RayConfig, EvaluationConfig]:
    """What each worker asks for, and where it evaluates.

    Args:
        evaluation: of the run.
        workers: of the run.
        gpus: whether the cluster has any.
        cores: of its smallest node; threads change the last bits of values, so they are the same everywhere.

    Raises:
        ValueError: devices and GPUs that differ in number.
    """
    device = evaluation.device
    if device == "auto":
        device = "cuda" if (gpus if workers.gpus is None else workers.gpus) else "cpu"
    devices = device.split(",") if device.startswith("cuda") else []
    each = float(len(devices)) if workers.gpus is None else workers.gpus
    if len(devices) > 1 and each != len(devices):
        raise ValueError(
            f"evaluation.device {device!r} is of {len(devices)} GPUs, workers.gpus of {each:g}; leave one of them out"
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
    """Open model and levels in another process, perhaps on another machine.

    Args:
        config: resolved, as JSON values.
        folders: where the levels are, or are written.
        data: tokenised sequences by name.
        recipe: what decides a value where the levels were built.
        levels: gives them where this machine does not see them.
        share: of this machine's memory.
        held: what this process has open already.

    Raises:
        ValueError: something else decides a value here.
        FileNotFoundError: model or levels are not here.
    """
    site = held or _open(config, folders, data, share)
    assembly = site.assembly
    _compare(recipe["recipe"], assembly.recipe)
    if _awaited(assembly) and (content := levels()):
        assembly.database.restore(content)
    if _missing(assembly):
        raise FileNotFoundError(f"no levels at {assembly.database.path}; use a folder that every node sees")
    _compare(recipe, site.recipe)
    return site.evaluator


def _compare(there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    if changed := differences(there, here):
        named = "; ".join(f"{name} is {new}, not {old}" for name, (old, new) in changed.items())
        raise ValueError(
            f"its values would not be comparable: {named}; use nodes of one kind with the same libraries"
        )


def _open(config: Mapping[str, Any], folders: Folders, data: Data, share: Share) -> LocalSite:
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
    """Whether a new file shows within `seconds`."""
    del say
    return _waited((site.assembly.databases / name).exists, seconds)


def _lacking(site: LocalSite, say: Say) -> int:
    del say
    return _missing(site.assembly)


def _levels(site: LocalSite, say: Say) -> Levels:
    del say
    return _dumped(site.assembly)


def _dumped(assembly: Assembly) -> Levels:
    return assembly.database.dump() if assembly.database.bytes <= MOST else None


def _missing(assembly: Assembly) -> int:
    """Layers whose levels are not in the database that this process sees."""
    return len(assembly.labels.keys() - assembly.database.errors().keys())


def _awaited(assembly: Assembly) -> int:
    """Layers that are missing still after a while: shared folders show late what another machine wrote."""

    def settled() -> bool:
        assembly.database.refresh()
        return not (_missing(assembly) and assembly.database.path.is_dir())

    _waited(settled, _LATE)
    return _missing(assembly)


def _waited(done: Callable[[], bool], seconds: float) -> bool:
    """Whether it is done within `seconds`."""
    until = time.monotonic() + seconds
    while not (found := done()) and time.monotonic() < until:
        time.sleep(1.0)
    return found
