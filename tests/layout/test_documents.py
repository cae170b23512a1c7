"""Documents: README fits one screen, links lead somewhere, configurations and commands that pages name exist."""

import re
from pathlib import Path

import pytest

from paretopress.commands import app
from paretopress.exporters.formats import FORMATS
from paretopress.search.run.method_registry import METHODS
from paretopress.spaces.levels.encoding_registry import ENCODINGS
from tests.layout.test_layout import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
MADE = {"docs/reference/configuration.md", "docs/reference/commands.md"}
"""Pages that `docs/generate.py` makes."""


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_readme_fits_one_screen() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 60


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        place = (page.parent / target).resolve()
        assert place.exists() or name(place) in MADE, target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_files_of_examples_exist(page: Path) -> None:
    commands = {
        command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands
    }
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        for command in re.findall(r"(?:^|&& )paretopress (\w+)", block, re.MULTILINE):
            assert command in commands, command
        for module in re.findall(r"python -m (benchmarks[\w.]+)", block):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
        for path in re.findall(r"\bconfigs/[\w./-]+\.yaml", block):
            assert (ROOT / path).is_file(), path


def test_every_registered_name_stands_in_the_guide_for_its_users() -> None:
    guide = (ROOT / "docs" / "how-to" / "levels-and-budgets.md").read_text()
    for known in (*ENCODINGS, *METHODS):
        assert f"`{known}`" in guide, known
    exporting = (ROOT / "docs" / "how-to" / "export.md").read_text()
    for form in FORMATS:
        assert f"`{form}`" in exporting, form
