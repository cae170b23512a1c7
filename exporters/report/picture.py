"""Drawing a front as an SVG file, for papers, web pages and slides."""

from pathlib import Path

from ...search.folder.front import Front
from ...spaces.storage.files import write_atomic
from ...spaces.storage.ownership import check_output_file
from .plot import HEIGHT, WIDTH
from .report import front_chart
from .stylesheet import CHART, COLOURS

_BEGINNING = "<svg "


def write_picture(front: Front, output: Path, *, overwrite: bool = False) -> None:
    """Draw a front with its baselines, in colours for light and dark pages.

    Args:
        front: the front to draw.
        output: path of the SVG file to write.
        overwrite: whether to replace an SVG file that exists at `output`.

    Raises:
        ValueError: the front has no held-out figures.
        FileExistsError: `output` exists and is not an SVG file, or is one and `overwrite` is not set.
    """
    drawn = front_chart(front)
    if not drawn:
        raise ValueError("the front has no held-out figures to draw; let the search finish")
    check_output_file(output, "SVG file", _read, overwrite=overwrite)
    write_atomic(output, _standing_alone(drawn))


def _standing_alone(drawn: str) -> str:
    """Add to a chart the parts that a file of its own needs: XML namespace, size, stylesheet and background."""
    opening = f'{_BEGINNING}xmlns="http://www.w3.org/2000/svg" width="{WIDTH:g}" height="{HEIGHT:g}" '
    style = f"<style>{COLOURS}svg {{ font-family: system-ui, sans-serif; }}{CHART}</style>"
    ground = f'<rect width="{WIDTH:g}" height="{HEIGHT:g}" fill="var(--card)"/>'
    inside = drawn.index(">") + 1
    return opening + drawn[len(_BEGINNING) : inside] + style + ground + drawn[inside:] + "\n"


def _read(path: Path) -> str:
    text = path.read_text()
    if not text.startswith(_BEGINNING):
        raise ValueError("it does not begin as an SVG file")
    return text
