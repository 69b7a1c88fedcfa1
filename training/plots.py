"""Charts as SVG that is part of a page and takes the colour of its text."""

import io
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from training.figures import Bin

# In inches of 72 points. At 390 pixels, a phone's width, labels of 10 points are 10 pixels high.
_SIZE = (5.2, 3.4)
_TEXT = "#010203"  # stands for the page's own colour of text, which is another in the dark
# Both contrast 3:1 or more with white and with the dark page; as do all colours between them.
BLUE, ORANGE = "#2f7fd1", "#d9690b"
_DEPTH = LinearSegmentedColormap.from_list("depth", [BLUE, "#9a68d0", "#cf5090", ORANGE])
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 10,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
} | dict.fromkeys(
    ("axes.edgecolor", "axes.labelcolor", "grid.color", "text.color", "xtick.color", "ytick.color"),
    _TEXT,
)
_MANY = 25  # points of a line, from which on each is not marked


def lines(  # noqa: PLR0913 (named, and each a matter of its own)
    description: str,
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    ylabel: str,
    is_share: bool = False,
    is_log: bool = False,
    by_depth: bool = False,
    limits: tuple[float, float] | None = None,
    title: str = "",
) -> Markup | None:
    """A line for each series.

    Args:
        description: what the chart shows, for whoever does not see it.
        x: epochs.
        series: values at each x by name; those that are not finite are left out.
        ylabel: label of the vertical axis.
        is_share: whether values are shares of 1, which are shown in percent.
        is_log: whether the vertical axis is logarithmic if values differ by a factor over 20.
        by_depth: whether the series are the layers of a network, in order.
        limits: of the vertical axis; a logarithmic one is logarithmic in any case.
        title: above the chart.

    Returns:
        An `<svg>` element, or None where no value is finite.
    """
    finite = [v for values in series.values() for v in values if math.isfinite(v)]
    if not finite:
        return None
    positive = [value for value in finite if value > 0]
    is_log = is_log and bool(positive) and (bool(limits) or max(positive) > 20 * min(positive))

    def draw(axes: Axes) -> None:
        for number, (name, values) in enumerate(series.items()):
            shown = [math.nan if is_log and not v > 0 else v for v in values]
            colour = (
                _DEPTH(number / max(len(series) - 1, 1)) if by_depth else (BLUE, ORANGE)[number % 2]
            )
            marker = "o" if len(x) < _MANY else None
            axes.plot(x, shown, label=name, color=colour, marker=marker, markersize=3)
        axes.set(xlabel="epoch", ylabel=ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if is_log:
            axes.set_yscale("log")
        elif not is_share:
            axes.set_ylim(bottom=0)
        if limits:
            axes.set_ylim(limits)
        if is_log:
            _plain_numbers(axes)
        if is_share:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        if by_depth or len(series) > 1:
            _add_legend(axes, series)
        axes.set_title(title, fontsize=10)

    return _svg(description, draw)


def reliability(description: str, bins: Sequence[Bin], title: str) -> Markup:
    """Accuracy by confidence, which should be equal, and how many instances each bin has.

    Args:
        description: what the chart shows, for whoever does not see it.
        bins: of `training.figures.reliability`.
        title: above the chart.

    Returns:
        An `<svg>` element.
    """

    def draw(upper: Axes, lower: Axes) -> None:
        left = [each.lower for each in bins]
        width = [each.upper - each.lower for each in bins]
        upper.bar(
            left, [each.accuracy for each in bins], width, align="edge", color=BLUE, alpha=0.6
        )
        upper.plot([0, 1], [0, 1], color=_TEXT, linewidth=1, linestyle="--", label="ideal")
        confidence, accuracy = zip(*((b.confidence, b.accuracy) for b in bins), strict=True)
        upper.plot(confidence, accuracy, "o", color=ORANGE, markersize=4, label="mean of a bin")
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
        upper.legend(loc="upper left", fontsize=9)
        upper.set_title(title, fontsize=10)
        lower.bar(left, [each.instances for each in bins], width, align="edge", color=BLUE)
        lower.set(xlabel="confidence", ylabel="instances", yscale="log")
        lower.set_ylim(0.7, 2 * max(each.instances for each in bins))
        lower.yaxis.set_major_locator(LogLocator(numticks=4))
        lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        lower.yaxis.set_minor_formatter(NullFormatter())

    return _svg(description, draw, size=(5.2, 4.6), heights=(3, 1))


def _add_legend(axes: Axes, names: Collection[str]) -> None:
    """Name the lines below the chart, in as many columns as fit."""
    columns = min(len(names), 40 // (max(map(len, names)) + 2))
    axes.figure.legend(loc="outside lower center", ncols=columns, fontsize=9)


def _plain_numbers(axes: Axes) -> None:
    """Label a logarithmic axis with 1, 2, 5, 10 or, of many decades, 1e-05, not with powers."""
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades < 2 else (1, 3) if decades < 4 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _svg(
    description: str,
    draw: Callable[..., None],
    *,
    size: tuple[float, float] = _SIZE,
    heights: Sequence[float] = (1,),
) -> Markup:
    """An `<svg>` element of axes one above the other, as `draw` fills them."""
    # The salt decides the ids within: the same chart is the same SVG, and two charts share none.
    with mpl.rc_context(_STYLE | {"svg.hashsalt": description}):
        # Without pyplot, which keeps figures and asks for a backend.
        figure = Figure(figsize=size, layout="constrained")
        grid: Any = {"height_ratios": heights}
        axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, gridspec_kw=grid)
        draw(*axes.flat)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue().replace(_TEXT, "currentColor")
    _, _, element = text.partition("<svg ")
    element = re.sub(r'<g id="[^"]*"', "<g", element)  # those are the same in every chart
    return Markup(f'<svg role="img" aria-label="{escape(description)}" {element}')  # noqa: S704
