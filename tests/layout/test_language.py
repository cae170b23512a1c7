"""Docstrings say something: every entry under Args, Attributes, Returns and Raises has at least three words."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.layout.test_layout import ROOT

PLACES = ("spaces", "evaluators", "workers", "search", "exporters", "paretopress", "benchmarks")
SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):$")
ENTRY = re.compile(r"(\*{0,2}[\w., ]+): (.+)")


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """The place and the text of every docstring of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
            text := ast.get_docstring(node)
        ):
            yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", text


def entries(text: str) -> Iterator[tuple[str, str]]:
    """Name and description of every entry of a docstring's sections."""
    section, indent, found = None, 0, list[list[str]]()
    for line in [*text.splitlines(), "end"]:
        depth = len(line) - len(line.lstrip())
        if line.strip() and depth <= indent and section:
            yield from ((name, description) for name, description in found)
            section, found = None, []
        if match := SECTION.fullmatch(line.strip()):
            section, indent = match[1], depth
        elif section in ("Returns", "Yields") and line.strip():
            found = [[section, " ".join([*(row[1] for row in found), line.strip()])]]
        elif section and depth == indent + 4 and (match := ENTRY.fullmatch(line.strip())):
            found.append([match[1], match[2]])
        elif section and found and line.strip():
            found[-1][1] += f" {line.strip()}"


def short_entries(path: Path) -> list[str]:
    return [
        f"{place} {name}: {description}"
        for place, text in docstrings(path)
        for name, description in entries(text)
        if len(description.split()) < 3
    ]


def test_entries_are_found() -> None:
    text = "What it is.\n\nArgs:\n    a: which.\n    b, c: the longer\n        text.\n\nReturns:\n    All.\n\nRaises:\n    ValueError: it is."
    assert list(entries(text)) == [
        ("a", "which."),
        ("b, c", "the longer text."),
        ("Returns", "All."),
        ("ValueError", "it is."),
    ]


@pytest.mark.parametrize("place", PLACES)
def test_entries_have_at_least_three_words(place: str) -> None:
    files = (ROOT / place).glob("*.py") if place == "paretopress" else (ROOT / place).rglob("*.py")
    found = [entry for path in sorted(files) for entry in short_entries(path)]
    assert not found, f"{len(found)} entries say too little:\n" + "\n".join(found)
