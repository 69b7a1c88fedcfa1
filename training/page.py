"""HTML pages of figures that refer to no other file and run no script."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text.

    Attributes:
        head: a title for each column.
        rows: cells, the first of each row its title.
        shades: 0 to 1 for each cell after the first of its row, as its background; empty for none.
        caption: what the rows and columns are; empty for none.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    shades: Sequence[Sequence[float]] = ()
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image with a caption.

    Attributes:
        source: a `data:` URL.
        alt: what the image shows, for whoever does not see it.
        caption: below the image.
        marks: points drawn over the image: shares of its width and height, from the top left, and
            whether the mark is filled.
    """

    source: str
    alt: str
    caption: str
    marks: Sequence[tuple[float, float, bool]] = ()


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page under a heading of its own.

    Attributes:
        heading: its title.
        note: how to read what follows; empty for none.
        facts: names and values.
        charts: `<svg>` elements.
        tables: below the charts.
        pictures: below the tables.
        is_smooth: whether the pixels of enlarged pictures blend into each other.
    """

    heading: str
    note: str = ""
    facts: Sequence[tuple[str, str]] = ()
    charts: Sequence[Markup] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    is_smooth: bool = False


def render(title: str, summary: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """A page.

    Args:
        title: text, like everything but the charts.
        summary: names and values of the figures that matter most.
        sections: in order; those with nothing but a heading and a note are left out.
    """
    shown = [s for s in sections if s.facts or s.charts or s.tables or s.pictures]
    template = _TEMPLATES.get_template("page.html.j2")
    return template.render(title=title, summary=summary, sections=shown)


def png(pixels: torch.Tensor) -> str:
    """Pixels, uint8 [height, width] or [height, width, 3], as a `data:` URL."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
