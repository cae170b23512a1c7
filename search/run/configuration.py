"""The configuration of one run, read from YAML and validated."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ...evaluators.fitness import FitnessConfig
from ...evaluators.levels.building import CalibratedBuilderConfig
from ...evaluators.runner.numerics import EvaluationConfig
from ...evaluators.text.data import DataConfig
from ...spaces.budget import BudgetConfig
from ...spaces.configuration import SpaceConfig
from ...spaces.storage.files import read_yaml
from ...workers.configuration import LocalConfig, WorkersConfig
from ..frontier.frontier import FrontierConfig
from .file_keys import FILE_KEYS, SHORT_KEYS, set_at, text_at
from .messages import explain
from .method_registry import SearchConfig


class StopConfig(BaseModel):
    """Limits that end a search early.

    Attributes:
        max_tokens: most calibration tokens of all evaluations together, the teacher's included; never exceeded.
        max_time: seconds of search after which no step is begun.
        looks: number of looks at validation text in a row without a gain beyond chance (`search/study/looks.py`) after
            which the search ends; None for no such limit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    max_tokens: int | None = Field(default=None, gt=0)
    max_time: float | None = Field(default=None, gt=0)
    looks: int | None = Field(default=3, gt=0)


class RunConfig(BaseModel):
    """The settings of a run.

    Attributes:
        model: folder of a Hugging Face model, or its name on the Hub.
        trust_remote_code: whether to run Python code that comes with the model.
        name: name of the run and of its folder under `runs/`.
        seed: root of all random numbers.
        data: calibration, validation and held-out text.
        space: levels of the search, and the layers that may have them.
        builder: settings for building the weights of the levels.
        evaluation: numerics, device and memory of the evaluations.
        workers: processes that evaluations run in; a bare kind such as `ray` means that kind with default settings.
        fitness: fitness function that the search minimises.
        budgets: budgets of the points of the front, one or a list; the first figure of each is the front's axis.
        archive_tokens: number of calibration tokens on which the archive compares profiles, always the same ones.
        search: search method, or several that run in turn, each of which starts from the best profiles so far.
        start_from: folder of a finished run of the same model; its front is measured first, and the search starts from
            that front.
        stop: limits that end the search early.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: str
    trust_remote_code: bool = False
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    data: DataConfig = DataConfig()
    space: SpaceConfig
    builder: CalibratedBuilderConfig = CalibratedBuilderConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    workers: WorkersConfig = LocalConfig()
    fitness: FitnessConfig = FitnessConfig()
    budgets: tuple[BudgetConfig, ...] = Field(min_length=1)
    archive_tokens: int = Field(default=65_536, gt=0)
    search: tuple[SearchConfig, ...] = Field(default=(FrontierConfig(),), min_length=1)
    start_from: str | None = None
    stop: StopConfig = StopConfig()

    @field_validator("budgets")
    @classmethod
    def _different(cls, budgets: tuple[BudgetConfig, ...]) -> tuple[BudgetConfig, ...]:
        names = [budget.name for budget in budgets]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"budget {repeated[0]!r} is given twice; remove one")
        return budgets

    @field_validator("workers", mode="before")
    @classmethod
    def _kind(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("budgets", "search", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, Mapping) else value


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration and apply overrides.

    A relative path (of model, text, latency table or earlier run) that does not exist in the working directory, but does in the
    folder of the configuration, refers to that folder. The `config.yaml` of a run folder is a configuration too.

    Args:
        path: path of the YAML file.
        overrides: texts `key.inner=value`, where the value is YAML and an item of a list is named by its number.

    Raises:
        ValueError: the file is not a YAML mapping, a key is unknown (the message suggests the nearest known key), or a
            value is not allowed.
        FileNotFoundError: there is no file at `path`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no configuration at {path}; ready ones are in configs/")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is not a YAML mapping; a configuration has keys such as `model` and `space`"
        )
    _name_workers(content, content.get("workers"), None)
    content.pop("format_version", None)
    for override in overrides:
        before = content.get("workers")
        _override(content, override)
        _name_workers(content, content.get("workers"), before)
    content.setdefault("name", path.stem)
    for key in (*FILE_KEYS, *SHORT_KEYS):
        value = text_at(content, key)
        if value and not Path(value).exists() and (path.parent / value).exists():
            set_at(content, key, str(path.parent / value))
    return parse_config(content, str(path))


def parse_config(content: Mapping[str, Any], where: str) -> RunConfig:
    """Validate a mapping and return the configuration.

    Args:
        content: content of a configuration file.
        where: name of the source, with which error messages begin.

    Raises:
        ValueError: a key is unknown or missing, or a value is not allowed.
    """
    try:
        return RunConfig.model_validate(dict(content))
    except ValidationError as error:
        raise ValueError(f"{where}: {explain(error, RunConfig)}") from error


def _name_workers(content: dict[str, Any], given: object, before: object) -> None:
    """Replace `workers: KIND` by a mapping, so that later overrides can set keys in it.

    Args:
        content: content of a configuration file, which is changed.
        given: present value of `workers`.
        before: value before the last override; a mapping of the same kind is kept with its settings.
    """
    if isinstance(given, str):
        same = isinstance(before, Mapping) and before.get("kind") == given
        content["workers"] = before if same else {"kind": given}


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise ValueError(f"--set {override!r} has no value; write --set key=value")
    *parents, last = key.strip().split(".")
    place: Any = content
    for parent in parents:
        place = place[_index(place, parent, key)] if isinstance(place, list) else place.setdefault(parent, {})
        if not isinstance(place, dict | list):
            raise ValueError(f"--set {key}: {parent!r} is a value, not a mapping; correct the key")
    try:
        place[_index(place, last, key) if isinstance(place, list) else last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {override!r}: the value is not YAML; put it in quotes") from error


def _index(items: list[Any], part: str, key: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise ValueError(f"--set {key}: {part!r} is not an index of a list of {len(items)}; count from 0")
    return int(part)
