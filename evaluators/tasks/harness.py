"""Scores of whole models on the tasks of lm-eval, an optional package that takes seconds to import."""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .confinement import confined
from .task_files import TRUST, is_task_file, read_task_file

_RESAMPLES = 1000
_SEED = 1234
"""Seed of the examples in prompts, lm-eval's own default, so that scores compare with those of others."""


@dataclass(frozen=True)
class Score:
    """One metric of a task, or of a group of tasks.

    Attributes:
        task: name of the task.
        metric: name of the metric, followed in brackets by the filter of the answers if there is one.
        value: value of the metric as lm-eval gives it.
        error: standard error of the value; None if lm-eval gives none that is finite.
        samples: number of documents that were scored.
        higher: whether a higher value is better; None if lm-eval does not say.
    """

    task: str
    metric: str
    value: float
    error: float | None
    samples: int
    higher: bool | None


class Harness:
    """Tasks with their documents, which can be run on any number of models.

    Args:
        tasks: paths of task files, or names of tasks that lm-eval has (their documents are on the hub).
        trust_remote_code: whether to run code that the tasks name.

    Raises:
        ModuleNotFoundError: the package lm-eval is not installed.
        FileNotFoundError: a task file does not exist.
        ValueError: a name is unknown or given twice, a task cannot be loaded, or a task runs code that is not trusted.
    """

    def __init__(self, tasks: Sequence[str], *, trust_remote_code: bool = False) -> None:
        try:
            from lm_eval.tasks import TaskManager
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("--tasks needs lm-eval; pip install 'paretopress[eval]'") from error
        wanted = {task: _record(task, trust_remote_code) for task in tasks}
        self._trust = trust_remote_code
        named = any(isinstance(record, str) for record in wanted.values())
        # lm-eval's own tasks are thousands of files, which take seconds to read.
        self._manager = TaskManager(include_defaults=named)
        self._tasks: dict[str, Any] = {}
        self._groups: dict[str, Any] = {}
        for task, record in wanted.items():
            self._add(task, record)

    def _add(self, task: str, record: str | dict[str, Any]) -> None:
        known = self._manager.all_tasks
        if isinstance(record, str) and record not in known:
            near = ", ".join(difflib.get_close_matches(task, known, n=3, cutoff=0.0))
            raise ValueError(f"task {task!r} is no .yaml file and unknown to lm-eval; the nearest are {near}")
        found = self._loaded(task, record)
        for name, made in found["tasks"].items():
            if name in self._tasks:
                raise ValueError(f"task {name!r} is given twice; give it once")
            if getattr(made, "UNSAFE_CODE", False) and not self._trust:
                raise ValueError(f"task {name!r} runs code that models write, which is not allowed; {TRUST}")
            if made.config.num_fewshot is None:
                made.set_config(key="num_fewshot", value=0)
            made.set_fewshot_seed(seed=_SEED)
        self._tasks |= found["tasks"]
        self._groups |= found.get("groups", {})

    def _loaded(self, task: str, record: str | dict[str, Any]) -> dict[str, Any]:
        with confined(self._trust) as missing:
            try:
                found: dict[str, Any] = self._manager.load([record])
            except Exception as error:  # a task can make lm-eval, datasets and the network raise anything
                _refuse_metrics(task, missing)
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                raise ValueError(f"lm-eval cannot load {task} ({reason}); check it and its data") from error
        _refuse_metrics(task, missing)
        return found

    def scores(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: int) -> list[Score]:
        """Run all tasks on one model and return their scores.

        Args:
            model: model to score, on its device.
            tokenizer: tokenizer of the model.
            batch: number of sequences that run at once.

        Raises:
            ValueError: a template of a task does not fit the task's documents.
        """
        from jinja2 import TemplateError
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        with confined(self._trust):
            asked = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, softmax_dtype=torch.float32)
            try:
                results = evaluate(
                    asked,
                    {"tasks": self._tasks, "groups": self._groups},
                    bootstrap_iters=_RESAMPLES,
                    log_samples=False,
                    confirm_run_unsafe_code=self._trust,
                )
            except TemplateError as error:
                raise ValueError(f"a template of a task fails ({error}); correct the task file") from error
        return list(_scores(results))


def _record(task: str, trust: bool) -> str | dict[str, Any]:
    """Return the name of a task that lm-eval has, or the content of a task file, for lm-eval to load."""
    return read_task_file(Path(task), trust_remote_code=trust) if is_task_file(task) else task


def _refuse_metrics(task: str, missing: list[str]) -> None:
    if missing:
        raise ValueError(
            f"{task}: lm-eval has no metric {missing[0]!r} and would run code for it from the Hugging Face Hub; {TRUST}"
        )


def _scores(results: Mapping[str, Any]) -> Iterator[Score]:
    for task, figures in (results["results"] | results.get("groups", {})).items():
        for key, value in figures.items():
            metric, _, answers = key.partition(",")
            if not answers or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = figures.get(f"{metric}_stderr,{answers}")
            known = isinstance(error, int | float) and math.isfinite(error)
            yield Score(
                task,
                metric if answers == "none" else f"{metric} ({answers})",
                float(value),
                float(error) if known else None,
                int(results["n-samples"].get(task, {}).get("effective", figures.get("sample_len", 0))),
                results["higher_is_better"].get(task, {}).get(metric),
            )
