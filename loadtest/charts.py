"""Charts of latency, as SVG to be part of a page."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from loadtest.recorder import LATENCY, SENT, Results, percentile


def svg(draw: Callable[[Any], None]) -> str:
    """Two panels side by side, as an `<svg>` element.

    Args:
        draw: draws into the two axes of matplotlib that it is called with.
    """
    # Here, as a worker of a distributed run draws nothing, and the import takes 0.3 s.
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    draw(axes)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def plain_numbers(*axes: Any) -> None:
    """Label a logarithmic axis with 10, 20, 50, 100 instead of powers of ten.

    Labels for every digit overlap once the axis spans a decade or two.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in axes:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def latency(results: Results) -> str:
    """Latency by percentile, and over the time of the run; an `<svg>` element."""

    def draw(axes: Any) -> None:
        by_percentile, over_time = axes
        for name, scenario in results.scenarios.items():
            rows = scenario.rows
            nines = np.linspace(0, np.log10(max(len(rows), 2)), 200)
            percents = 100 * (1 - 10**-nines)
            values = 1e3 * np.percentile(rows[:, LATENCY], percents, method="inverted_cdf")
            by_percentile.plot(nines, values, label=name)
            seconds = np.floor(rows[:, SENT] - results.started).astype(int)
            moments = np.unique(seconds)
            tail = [1e3 * percentile(rows[seconds == s, LATENCY], 99) for s in moments]
            over_time.plot(moments, tail, label=name)
        ticks = range(int(by_percentile.get_xlim()[1]) + 1)
        labels = ["0", *(f"{100 * (1 - 10**-n):.10g}" for n in ticks[1:])]
        by_percentile.set_xticks(list(ticks), labels)
        by_percentile.set(xlabel="percentile", ylabel="latency, ms", yscale="log")
        over_time.set(xlabel="seconds into the run", ylabel="p99 of each second, ms", yscale="log")
        for axis in axes:
            plain_numbers(axis.yaxis)
            axis.grid(alpha=0.3)
            axis.legend(fontsize="small")

    return svg(draw)
