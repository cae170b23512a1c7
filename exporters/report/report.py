"""The report: one self-contained HTML page that shows what a run found and how.

The page loads nothing from other files or servers. All text that comes from files is escaped.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from ...search.folder.front import Front, LookRow, Point
from ...search.folder.runfolder import RunFolder
from ...search.run.event import duration
from ...spaces.storage.files import write_atomic
from ..figures import cost_figure, figure, percent, size, whole
from .heatmap import HeatMaps
from .plot import Mark, Series, chart
from .stylesheet import STYLE, section, selection_rules
from .task_scores import read_scores, scores_section

_SHAPES = (("first dashed", "square"), ("second dashed", "diamond"), ("third dashed", "square"))
_MEASURED = ("heldout_kl", "heldout_perplexity", "heldout_interval", "p_value")
_SCRIPT = (
    "document.querySelectorAll('[data-selects]').forEach(mark => mark.addEventListener('click', () => {"
    "document.getElementById(mark.dataset.selects).checked = true; }));"
)


def write_report(run: Path) -> Path:
    """Write `report.html` into the folder of a run that has a `front.json`.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: the run has no front yet.
        ValueError: `front.json` or a file of task scores is damaged.
    """
    front = RunFolder(run).read_front()
    if front is None:
        raise FileNotFoundError(f"{run / 'front.json'} does not exist; finish the search of this run first")
    path = run / "report.html"
    write_atomic(path, page(front, str(run), read_scores(run)))
    return path


def page(front: Front, run: str, scores: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the HTML text of the whole report.

    Args:
        front: the front to report on.
        run: folder of the run, as the commands shown in the report should name it.
        scores: task scores of the run's models, as `read_scores` returns them.
    """
    choices = [f"point-{i}" for i in range(len(front.points))]
    radios = "".join(
        f'<input class="choice" type="radio" name="point" id="{c}"{" checked" if c == choices[0] else ""}>'
        for c in choices
    )
    sections = (
        _front(front),
        _profiles(front),
        _progress(front),
        _looks(front),
        _table(front),
        scores_section(scores),
        _made(front),
        _next(front, run),
    )
    title = f"Pareto front of {escape(front.model)}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title} · paretopress</title>\n<style>{STYLE}{selection_rules(choices)}</style>\n</head>\n<body>\n<main>\n"
        f'<p class="kicker">paretopress report</p>\n<h1>{title}</h1>\n{_summary(front)}\n{radios}\n'
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _uniform(front: Front, point: Point) -> Point | None:
    """Return the uniform baseline for the budget of `point`, or None."""
    found = (b for b in front.baselines if b.method == "uniform" and b.budget == point.budget)
    return next(found, None)


def _refits(front: Front) -> list[Point]:
    """Return a copy of every refitted point, with the figures of the refit in place of the point's own."""
    found = []
    for point in front.points:
        if (refit := point.refit) is not None:
            figures = {name: getattr(refit, name) for name in _MEASURED}
            method = "refit" if refit.kept else "refit, not kept"
            changes = figures | {"method": method, "significant": refit.kept, "fitness": None}
            found.append(point.model_copy(update=changes))
    return found


def _summary(front: Front) -> str:
    gains = [
        (gain, p)
        for p in front.points
        if (gain := _change(p, _uniform(front, p))) is not None and p.significant
    ]
    text = "No point is significantly better than the uniform profile of its budget."
    if gains:
        gain, best = min(gains, key=lambda item: item[0])
        text = (
            f"At the budget <i>{escape(best.budget)}</i>, held-out KL is {figure(best.heldout_kl)} nats per token: "
            f"<b>{percent(gain)}</b> against uniform compression of the same size."
        )
        text += f" {len(gains)} of {len(front.points)} points are significantly better than uniform."
    tiles = [("points on the front", whole(len(front.points)))]
    counts = {"evaluations": front.evaluations, "tokens": front.tokens}
    tiles += [(name, whole(count)) for name, count in counts.items() if count is not None]
    tiles += [("search time", duration(front.seconds))] if front.seconds is not None else []
    items = "".join(f"<li><b>{value}</b><span>{name}</span></li>" for name, value in tiles)
    return f'<p>{text}</p>\n<ul class="tiles">{items}</ul>'


def front_chart(front: Front) -> str:
    """Return a chart of the front and its baselines as one SVG element, or "" if there are no held-out figures."""
    methods = sorted({b.method for b in front.baselines}, key=lambda m: (m != "uniform", m))
    series = [
        _series(method, *_SHAPES[i % len(_SHAPES)], front, (b for b in front.baselines if b.method == method))
        for i, method in enumerate(methods)
    ]
    if refits := _refits(front):
        series.append(_series("refit", "third", "diamond", front, refits))
    series.append(_series("front", "front", "circle", front, front.points, selects=True))
    series = [one for one in series if one.marks]
    title = "held-out KL, nats per token (log)"
    return chart(series, front.cost_unit, title, f"Held-out KL against {front.cost_unit}") if series else ""


def _front(front: Front) -> str:
    note = "Divergence from the dense model on held-out text against cost; lower and further left is better. "
    note += "Bars are confidence intervals. Choose a point to see its profile."
    if not (drawn := front_chart(front)):
        return section("Front", "There are no held-out figures yet.", "")
    return section("Front", note, f'<div class="scroll">{drawn}</div>')


def _series(
    name: str, style: str, shape: str, front: Front, points: Iterable[Point], selects: bool = False
) -> Series:
    marks = []
    for i, point in enumerate(points):
        if point.heldout_kl is not None:
            low, high = point.heldout_interval or (None, None)
            target = f"point-{i}" if selects else ""
            marks.append(Mark(point.cost, point.heldout_kl, low, high, _tooltip(front, point), target))
    return Series(name, style, tuple(marks), shape)


def _tooltip(front: Front, point: Point) -> str:
    lines = [f"{point.method} at {point.budget}", f"cost {cost_figure(point.cost)} {front.cost_unit}"]
    lines.append(f"held-out KL {figure(point.heldout_kl)}")
    if point.heldout_perplexity is not None:
        lines.append(f"perplexity {figure(point.heldout_perplexity)}")
    return "\n".join(lines)


def _profiles(front: Front) -> str:
    drawn = [(i, point) for i, point in enumerate(front.points) if point.profile]
    if not drawn:
        return ""
    maps = HeatMaps((point.profile for _, point in drawn), front.weights)
    tabs = "".join(
        f'<label for="point-{i}">{escape(p.budget or cost_figure(p.cost))}</label>' for i, p in drawn
    )
    panels = "".join(
        f'<div class="panel panel-point-{i}"><p class="note">{escape(p.method)}, '
        f"{cost_figure(p.cost)} {escape(front.cost_unit)}, held-out KL {figure(p.heldout_kl)}</p>"
        f'<div class="scroll">{maps.svg(p.profile, f"Profile at {p.budget}")}</div></div>'
        for i, p in drawn
    )
    body = f'<div class="tabs">{tabs}</div>{panels}<div class="legend">{maps.legend()}</div>'
    note = "The level of every unit. Columns are blocks, rows are kinds of layers; darker cells have more bits per weight."
    return section("Profiles", note, body)


def _progress(front: Front) -> str:
    budgets = list(dict.fromkeys(row.budget for row in front.progress))
    styles = ("front", "first", "third", "second")
    series = [
        Series(
            budget or "incumbent",
            styles[i % len(styles)],
            tuple(Mark(row.tokens, row.fitness) for row in front.progress if row.budget == budget),
            shape="",
            steps=True,
        )
        for i, budget in enumerate(budgets)
    ]
    if not series:
        return ""
    drawn = chart(
        series, "tokens through the model", "fitness (log)", "Fitness of the incumbent against tokens"
    )
    note = "Fitness of the best profile so far, on calibration text. The search minimises it; the result is held-out KL."
    return section("Progress", note, f'<div class="scroll">{drawn}</div>')


def _looks(front: Front) -> str:
    known = [
        row for row in front.looks if None not in (row.calibration_of_uniform, row.validation_of_uniform)
    ]
    groups = [list(rows) for _, rows in groupby(known, key=lambda row: row.tokens)]
    if not groups:
        return ""
    series = [
        _shares("validation", "first dashed", "square", groups, lambda row: row.validation_of_uniform or 0),
        _shares("calibration", "front", "circle", groups, lambda row: row.calibration_of_uniform or 0),
    ]
    budgets = max(len(rows) for rows in groups)
    title = "fitness / uniform's fitness (log)"
    label = "Fitness on calibration and on validation text against tokens"
    note = "Fitness of the best profile so far as a share of the uniform profile's fitness on the same text"
    note += f", geometric mean over {budgets} budgets. " if budgets > 1 else ". "
    note += "Where the lines diverge, the search overfits its calibration text."
    if front.stopped == "looks":
        note += " The search ended early because the fitness on validation text no longer improved."
    drawn = chart(series, "tokens through the model", title, label)
    return section("Calibration and validation", note, f'<div class="scroll">{drawn}</div>')


def _shares(
    name: str, style: str, shape: str, groups: Sequence[Sequence[LookRow]], share: Callable[[LookRow], float]
) -> Series:
    """Build a series with one mark per look, at the geometric mean of `share` over the budgets.

    Args:
        name: name of the series in the chart and in the tooltips.
        style: CSS classes of the series.
        shape: shape of the marks.
        groups: rows of each look, one row per budget.
        share: function that returns a row's fitness divided by that of the uniform profile; tooltips list the quotient
            for every budget.
    """
    marks = []
    for rows in groups:
        lines = [f"{name} after {whole(rows[0].tokens)} tokens"]
        lines += [f"{look.budget}: {figure(share(look))}" for look in rows]
        shares = [share(look) for look in rows]
        mean = geometric_mean(shares) if min(shares) > 0 else 0.0
        marks.append(Mark(rows[0].tokens, mean, tooltip="\n".join(lines)))
    return Series(name, style, tuple(marks), shape)


def _table(front: Front) -> str:
    heads = (
        "budget",
        "method",
        "cost",
        "size",
        "fitness",
        "held-out KL",
        "perplexity",
        "against uniform",
        "p",
    )
    head = "".join(f'<th class="word">{h}</th>' if i < 2 else f"<th>{h}</th>" for i, h in enumerate(heads))
    budgets = list(dict.fromkeys(point.budget for point in (*front.points, *front.baselines)))
    rows = []
    for budget in budgets:
        chosen = [p for p in front.points if p.budget == budget]
        others = [b for b in (*_refits(front), *front.baselines) if b.budget == budget]
        group = [_row(front, p, chosen=p in chosen) for p in (*chosen, *others)]
        rows += [group[0].replace('<tr class="', '<tr class="start ', 1), *group[1:]]
    dense = _dense_row(front)
    note = f"Rows in bold are the front. Cost is in {escape(front.cost_unit)}, KL in nats per token with its confidence "
    note += "interval. Fitness is on calibration text, KL and perplexity are on held-out text. p is the p-value of the "
    note += (
        "paired test against uniform on validation text; for a refit, against the point without the refit."
    )
    body = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}{dense}</tbody></table></div>'
    return section("Figures", note, body)


def _row(front: Front, point: Point, chosen: bool) -> str:
    interval = point.heldout_interval
    within = f" <small>{figure(interval[0])} to {figure(interval[1])}</small>" if interval else ""
    gain = _change(point, _uniform(front, point))
    better = ' class="better"' if point.significant and gain is not None and gain < 0 else ""
    cells = [
        f'<td class="word">{escape(point.budget)}</td>',
        f'<td class="word">{escape(point.method)}</td>',
        f"<td>{cost_figure(point.cost)}</td>",
        f'<td title="{whole(point.bytes)} bytes">{size(point.bytes)}</td>'
        if point.bytes is not None
        else "<td>–</td>",
        f"<td>{figure(point.fitness)}</td>",
        f"<td>{figure(point.heldout_kl)}{within}</td>",
        f"<td>{figure(point.heldout_perplexity, 5)}</td>",
        f"<td{better}>{percent(gain) if point.method != 'uniform' else '–'}</td>",
        f"<td>{figure(point.p_value, 2)}</td>",
    ]
    return f'<tr class="{"chosen" if chosen else ""}">{"".join(cells)}</tr>'


def _dense_row(front: Front) -> str:
    if not front.dense:
        return ""
    bytes_ = front.dense.get("bytes")
    stored = f'<td title="{whole(bytes_)} bytes">{size(bytes_)}</td>' if bytes_ is not None else "<td>–</td>"
    perplexity = figure(front.dense.get("heldout_perplexity"), 5)
    blank = "<td>–</td>"
    return (
        f'<tr class="start"><td class="word">–</td><td class="word">dense</td>{blank}{stored}{blank}'
        f"{blank}<td>{perplexity}</td>{blank * 2}</tr>"
    )


def _made(front: Front) -> str:
    items: list[tuple[str, str]] = [("model", escape(front.model))]
    items += [("seed", str(front.seed))] if front.seed is not None else []
    counts = {
        "evaluations": front.evaluations,
        "tokens": front.tokens,
        "teacher tokens": front.teacher_tokens,
    }
    items += [(name, whole(count)) for name, count in counts.items() if count is not None]
    if front.seconds is not None:
        items.append(("time", f"{duration(front.seconds)} ({front.seconds:.1f} s)"))
    items += [
        (f"{escape(name)} fingerprint", f"<code>{escape(value)}</code>")
        for name, value in front.fingerprints.items()
    ]
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in items)
    note = "Tokens count in full for every profile, even where profiles share computed work. Versions are in environment.json."
    return section("How this was made", note, f"<dl>{rows}</dl>")


def _next(front: Front, run: str) -> str:
    budgets: Sequence[str] = [point.budget for point in front.points if point.budget] or ["BUDGET"]
    folder = shlex.quote(run)
    lines = [
        f"paretopress export {folder} --budget {shlex.quote(budgets[0])} --output compressed-model",
        f"paretopress show {folder}",
    ]
    body = f"<pre>{escape(chr(10).join(lines))}</pre>"
    return section(
        "Next", "Write a point of the front as a model, or print this table in the terminal.", body
    )


def _change(point: Point, reference: Point | None) -> float | None:
    """Return the relative change of held-out KL from `reference` to `point`, or None.

    It is None where one of the two is not known or the reference is zero.
    """
    if reference is None or point.heldout_kl is None or not reference.heldout_kl:
        return None
    return point.heldout_kl / reference.heldout_kl - 1
