"""The report page: valid, self-contained, complete and safe, and its pictures against their definitions."""

import json
import math
import re
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.exporters.figures import cost_figure, figure, percent, size, whole
from paretopress.exporters.report.heatmap import HeatMaps, Place, bits_per_weight, place, short_label
from paretopress.exporters.report.picture import write_picture
from paretopress.exporters.report.plot import Mark, Series, chart, linear_ticks, log_ticks
from paretopress.exporters.report.report import front_chart, write_report
from paretopress.search.folder.front import Front
from paretopress.search.run.event import duration
from paretopress.spaces.levels.labels import parse_label, stored_bits

VOID = {"meta", "input", "br"}
HOSTILE = "<script>alert(1)</script>&\"'"


class Page(HTMLParser):
    """Checks that elements nest, and collects text, attributes and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        self.text.append(data)

    @property
    def words(self) -> str:
        return "".join(self.text)


def record(**changes: Any) -> dict[str, Any]:
    """A front of two budgets with two baselines each."""
    points, baselines = [], []
    for i, budget in enumerate(("bits 3.25", "bits 4")):
        profile = {"blocks.0.mlp": "drop" if i else "keep", "blocks.1.mlp": "keep", "lm_head": "w8g128"}
        for block in range(2):
            profile[f"model.layers.{block}.self_attn.q_proj"] = ("w2g128", "w4g128")[block]
            if block or not i:
                profile[f"model.layers.{block}.mlp.up_proj"] = "s50"
        kl = 0.12345 / (i + 1)
        point = {
            "budget": budget,
            "cost": 3.2468 + i,
            "costs": {"bits": 1234},
            "bytes": 2_345_678 + i,
            "fitness": 0.11223 / (i + 1),
            "heldout_kl": kl,
            "heldout_perplexity": 11.234 - i,
            "heldout_interval": [0.10101 / (i + 1), 0.14141 / (i + 1)],
            "profile": profile,
            "method": "evolution",
            "significant": not i,
            "p_value": 0.0123 + i / 10,
        }
        points.append(point)
        for method, factor in (("uniform", 2), ("dp-nmse", 3)):
            worse = {"method": method, "heldout_kl": kl * factor, "p_value": None}
            baselines.append(point | worse | {"heldout_interval": None})
    front = {
        "format_version": 1,
        "model": "some/model",
        "cost_unit": "bits per weight",
        "points": points,
        "baselines": baselines,
        "dense": {"bytes": 9_876_543, "heldout_perplexity": 8.7654},
        "evaluations": 4321,
        "tokens": 87_654_321,
        "seconds": 3723.4,
        "seed": 42,
        "fingerprints": {"model": "abcdef", "space": "012345"},
        "progress": [
            {"budget": b, "tokens": t, "fitness": 1 / t} for b in ("bits 3.25", "bits 4") for t in (10, 99)
        ],
        "looks": looks(("bits 3.25", "bits 4"), (10, 99)),
        "stopped": None,
    }
    return front | changes


def looks(budgets: Iterable[str], tokens: Iterable[int]) -> list[dict[str, Any]]:
    """Looks whose shares differ by budget, by tokens and by text."""
    return [
        {
            "budget": budget,
            "tokens": t,
            "calibration": 0.1,
            "validation": 0.2,
            "calibration_of_uniform": 1 / (1 + 0.01 * t + 0.1 * i),
            "validation_of_uniform": 1 / (1 + 0.003 * t + 0.1 * i),
            "gap": 0.0,
        }
        for t in tokens
        for i, budget in enumerate(budgets)
    ]


Report = Callable[..., str]


@pytest.fixture
def report(tmp_path: Path) -> Report:
    def write(**changes: Any) -> str:
        run = tmp_path / "my run"
        run.mkdir(exist_ok=True)
        (run / "front.json").write_text(json.dumps(record(**changes)))
        path = write_report(run)
        assert path == run / "report.html"
        return path.read_text()

    return write


def test_page_is_valid_and_loads_nothing(report: Report) -> None:
    text = report()
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text.replace("</", ""))
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert not [
        name for name, _ in page.attributes if name in ("src", "href", "srcset") or name.startswith("on")
    ]
    identifiers = [value for name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    assert "prefers-color-scheme: dark" in text


def test_every_figure_of_the_front_is_on_the_page(report: Report) -> None:
    words = Page(report()).words
    front = record()
    for point in [*front["points"], *front["baselines"]]:
        for name in ("heldout_kl", "fitness"):
            assert figure(point[name]) in words
        assert figure(point["heldout_perplexity"], 5) in words
        assert cost_figure(point["cost"]) in words
        assert size(point["bytes"]) in words
        assert point["budget"] in words
        assert point["method"] in words
    for point in front["points"]:
        assert " to ".join(map(figure, point["heldout_interval"])) in words
        assert figure(point["p_value"], 2) in words
    assert figure(8.7654, 5) in words
    for value in (4321, 87_654_321):
        assert whole(value) in words
    for text in ("42", "abcdef", "012345", "1 h 2 min", "3723.4 s", "some/model", "−50.0 %"):
        assert text in words
    assert "1 of 2 points are significantly better" in words


def test_next_command_is_quoted_for_a_shell(report: Report, tmp_path: Path) -> None:
    assert f"paretopress export '{tmp_path / 'my run'}' --budget 'bits 3.25' --output" in Page(report()).words


def test_text_from_files_cannot_become_markup(report: Report) -> None:
    points = [
        p | {"budget": HOSTILE, "method": HOSTILE, "profile": {HOSTILE: "w4"}} for p in record()["points"]
    ]
    text = report(
        model=HOSTILE,
        cost_unit=HOSTILE,
        points=points,
        fingerprints={HOSTILE: HOSTILE},
        looks=looks([HOSTILE], [1, 2]),
        progress=[{"budget": HOSTILE, "tokens": 1, "fitness": 1}],
    )
    page = Page(text)
    assert page.scripts == Page(report()).scripts
    assert HOSTILE not in text
    assert HOSTILE in page.words


def test_front_without_heldout_figures_progress_or_dense_model(report: Report) -> None:
    bare = [{"budget": "bits 3", "cost": 3, "method": "dp", "profile": {}}]
    words = Page(report(points=bare, baselines=[], progress=[], dense={}, fingerprints={})).words
    assert "There are no held-out figures yet." in words
    assert "No point is significantly better" in words
    for absent in ("Progress", "Profiles", "dense"):
        assert f"{absent}\n" not in words
    assert "Calibration and validation" in words
    assert "Calibration and validation" not in Page(report(looks=[])).words
    assert Page(report(points=[], baselines=[])).words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": [{"cost": "3"}]}, "is damaged at points.0.cost"),
        ({"points": [{"cost": math.nan}]}, "NaN"),
        ({"points": 3}, "is damaged at points: Input should be a valid list"),
        ({"format_version": 2}, "has format_version 2, this release reads up to 1"),
    ],
)
def test_damaged_fronts_are_refused(report: Report, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"front.json.*{message}"):
        report(**changes)


def test_looks_are_drawn_as_means_over_budgets(report: Report) -> None:
    rows = looks(["a", "b", "c"], [10, 99])
    rows += [rows[0] | {"budget": "d", "validation_of_uniform": None, "gap": None}]
    text = report(looks=rows)
    section = text[text.index("<h2>Calibration and validation") :].split("</section>")[0]
    assert "geometric mean over 3 budgets" in section
    assert re.findall(r'class="name [^"]*"[^>]*>([^<]*)', section) == ["validation", "calibration"]
    assert len(re.findall("<circle class=.dot", section)) == 2
    assert len(re.findall("<rect class=.dot", section)) == 2
    for name in ("calibration", "validation"):
        for t in (10, 99):
            shares = [row[f"{name}_of_uniform"] for row in rows[:-1] if row["tokens"] == t]
            lines = [f"{b}: {figure(share)}" for b, share in zip("abc", shares, strict=True)]
            assert "\n".join([f"{name} after {t} tokens", *lines]) in section
    alone = report(looks=looks(["a"], [10]))
    assert "geometric mean" not in alone
    assert "no longer followed" not in alone
    assert "The search ended early because the fitness on validation text no longer improved." in report(
        stopped="looks"
    )


def test_a_picture_stands_alone_and_replaces_only_pictures(tmp_path: Path) -> None:
    front, output = Front.of(record(), "front.json"), tmp_path / "front.svg"
    write_picture(front, output)
    text = output.read_text()
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert (root.get("width"), root.get("height")) == ("860", "400")
    assert not re.search(r"https?:(?!//www.w3.org/2000/svg)|@import|url\(", text)
    drawn = front_chart(front)
    assert drawn[drawn.index(">") + 1 :] in text
    with pytest.raises(
        FileExistsError, match="exists already; give another name, or replace it with --overwrite"
    ):
        write_picture(front, output)
    write_picture(front, output, overwrite=True)
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(FileExistsError, match="thesis.tex is no SVG file, so it is not replaced"):
        write_picture(front, tmp_path / "thesis.tex", overwrite=True)
    with pytest.raises(ValueError, match="the front has no held-out figures to draw"):
        write_picture(Front(points=[]), tmp_path / "none.svg")


def test_run_without_a_front(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="finish the search of this run first"):
        write_report(tmp_path)


def test_units_have_their_place() -> None:
    assert place("model.layers.12.self_attn.q_proj") == Place("self_attn.q_proj", 12)
    assert place("transformer.h.3.mlp.c_fc") == Place("mlp.c_fc", 3)
    fused = "model.layers.0.self_attn.q_proj,model.layers.0.self_attn.k_proj"
    assert place(fused) == Place("self_attn.q_proj, k_proj", 0)
    assert place("blocks.4.attention") == Place("attention", 4)
    assert place("blocks.4") == Place("block", 4)
    assert place("lm_head") == Place("lm_head", None)


def test_missing_units_are_drawn_as_dropped() -> None:
    profiles = [p["profile"] for p in record()["points"]]
    maps = HeatMaps(profiles, {})
    gone = "model.layers.0.mlp.up_proj\ndropped with its branch"
    assert gone not in maps.svg(profiles[0], "")
    assert gone in maps.svg(profiles[1], "")
    # Dropped in every profile, so that no profile names the unit: still drawn, and only in the dropped branch.
    only = HeatMaps([profiles[1]], {})
    assert "mlp.up_proj of block 0\ndropped with its branch" in only.svg(profiles[1], "")
    assert "q_proj of block" not in only.svg(profiles[1], "")


def test_more_bits_are_never_a_lighter_shade() -> None:
    labels = ["w2g128", "w3g128", "2:4+w4g128", "w4g128", "w4g32a", "s75", "s50", "w8"]
    maps = HeatMaps([{label: label for label in labels}], {})
    ordered = sorted(labels, key=lambda label: bits_per_weight(label) or 0)
    shades = [maps.shade(label) for label in ordered]
    assert shades == sorted(shades)
    assert shades[0] == "shade-0"
    assert shades[-1] == "shade-8"


def test_bits_of_a_known_size_are_exact() -> None:
    assert bits_per_weight("s60+1000", 10_000) == stored_bits(parse_label("s60+1000"), (100, 100)) / 10_000
    assert bits_per_weight("w3g128a") == 3.25
    assert bits_per_weight("keep") is None


def test_cells_carry_short_labels() -> None:
    labels = ("w4g128a", "s60", "s60+2000000", "2:4+w4g128", "drop", "keep", "s33.3")
    assert [short_label(label) for label in labels] == ["4", "60", "+2", "2:4", "×", "", "33"]


@settings(deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(1.01, 1e6))
def test_ticks_lie_inside_and_are_at_least_two_where_there_is_room(low: float, ratio: float) -> None:
    ticks = log_ticks(low, low * ratio)
    assert all(low * (1 - 1e-6) <= tick <= low * ratio * (1 + 1e-6) for tick in ticks)
    assert len(ticks) >= (2 if ratio > 11 else 1)
    across = linear_ticks(low, low * ratio)
    assert 3 <= len(across) <= 13
    assert all(low * (1 - 1e-6) <= tick <= low * ratio * (1 + 1e-6) for tick in across)


finite = st.floats(0, 1e9, allow_nan=False)


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(finite, finite), min_size=1, max_size=5), min_size=1, max_size=4))
def test_charts_stay_within_their_frame(rows: list[list[tuple[float, float]]]) -> None:
    series = [
        Series(f"s{i}", "front", tuple(Mark(x, y, y / 2, y * 2) for x, y in row))
        for i, row in enumerate(rows)
    ]
    text = chart(series, "x", "y", "label")
    Page(text)
    assert "nan" not in text
    assert "inf" not in text
    for x, y in re.findall(r'class="dot" cx="([-\d.]+)" cy="([-\d.]+)"', text):
        assert 0 <= float(x) <= 860
        assert 0 <= float(y) <= 400
    heights = sorted(float(y) for y in re.findall(r'<text class="name front" x="[\d.]+" y="([-\d.]+)"', text))
    assert all(below - above >= 16.8 for above, below in pairwise(heights))


def test_numbers_read_well() -> None:
    assert [figure(v) for v in (0.0123456, None, 1234567.0)] == ["0.01235", "–", "1.235e+06"]
    assert [size(v) for v in (999, 2_345_678, None)] == ["999 B", "2.346 MB", "–"]
    assert [duration(v) for v in (3.21, 75, 3723)] == ["3.21 s", "1 min 15 s", "1 h 2 min"]
    assert [percent(v) for v in (-0.383, 0.1, None)] == ["−38.3 %", "+10.0 %", "–"]
    assert [cost_figure(v) for v in (3.2468, 1_234_567)] == ["3.2468", "1\u202f234\u202f567"]
