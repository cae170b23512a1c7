"""Task scores of the models of a run: files in the run's folder and a table in the report."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ...search.folder.runfolder import SCORES, RunFolder
from ...search.jobs.measure import Figures
from ...spaces.storage.files import FORMAT_VERSION, check_version, digest, read_json, write_json
from ..evaluate import Compared, finite
from ..figures import figure
from .stylesheet import section

_HEADS = ("model", "text", "KL", "perplexity", "task", "metric", "score", "dense")
_WORDS = ("model", "text", "task", "metric")


def keep_scores(run: Path, target: Path, data: str, figures: Figures, scores: Sequence[Compared]) -> Path:
    """Store a model's task scores in the run's folder, and keep its stored scores on other tasks.

    Args:
        run: folder of the run.
        target: the evaluated model folder, GGUF file or profile file; there is one file of scores per target.
        data: data set of the figures, `calibration`, `validation` or `heldout`.
        figures: the model's figures on that data set; they replace the stored ones.
        scores: scores of the model and, where it was scored too, of the dense model.

    Returns:
        The path of the file of scores.
    """
    path = run / SCORES / f"{target.stem}-{digest(str(target.resolve()))[:8]}.json"
    path.parent.mkdir(exist_ok=True)
    tasks: dict[tuple[str, str], dict[str, Any]] = {}
    # A stored score of the dense model stays if the dense model was not scored again.
    for row in (*(_read(path)["tasks"] if path.exists() else ()), *(score.record() for score in scores)):
        key = row["task"], row["metric"]
        tasks[key] = tasks.get(key, {}) | row
    record = {
        "format_version": FORMAT_VERSION,
        "target": str(target),
        "data": data,
        "figures": {name: finite(value) for name, value in figures.items()},
        "tasks": list(tasks.values()),
    }
    write_json(path, record)
    return path


def read_scores(run: Path) -> list[Mapping[str, Any]]:
    """Return the stored figures and task scores of each model, in the order of the files' names.

    Raises:
        ValueError: a file of scores is damaged.
    """
    return [_read(path) for path in RunFolder(run).task_scores()]


def scores_section(scores: Sequence[Mapping[str, Any]]) -> str:
    """Return the HTML of the section with all scores, or "" if there are none."""
    rows = [_row(record, task) for record in scores for task in record["tasks"]]
    if not rows:
        return ""
    head = "".join(f'<th class="word">{h}</th>' if h in _WORDS else f"<th>{h}</th>" for h in _HEADS)
    note = "Scores by lm-eval, ± one standard error, beside the same model's figures on text: models of nearly equal "
    note += "perplexity can differ in what they know. ↑ higher is better, ↓ lower."
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return section("Tasks", note, f'<div class="scroll">{table}</div>')


def _row(record: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    figures = record["figures"]
    better = {True: " ↑", False: " ↓", None: ""}[task["higher"]]
    words = (record["target"], record["data"]), (task["task"], f"{task['metric']}{better}")
    text, scored = ("".join(f'<td class="word">{escape(word)}</td>' for word in pair) for pair in words)
    numbers = f"<td>{figure(figures.get('kl'))}</td><td>{figure(figures.get('perplexity'), 5)}</td>"
    own, dense = _score(task["value"], task["error"]), _score(task.get("dense"), task.get("dense_error"))
    return f"<tr>{text}{numbers}{scored}<td>{own}</td><td>{dense}</td></tr>"


def _score(value: float | None, error: float | None) -> str:
    return figure(value) if error is None else f"{figure(value)} <small>± {figure(error, 2)}</small>"


def _read(path: Path) -> dict[str, Any]:
    return check_version(path, read_json(path))
