"""Reports a benchmark: Markdown tables, and a plot."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.measure import Memory, Sample
from bench.servers import NO_METRICS, NULL, NULL_ALONE, OTHER, SERVICE, STOCK
from loadtest import charts

_Form = Callable[[float], str]


@dataclass(frozen=True)
class Target:
    """A ratio that is to be reached: `figure` of `server` ÷ that of `base`.

    Attributes:
        least, most: the bound; one of them is set.
    """

    name: str
    figure: str
    server: str
    base: str
    connections: int
    least: float | None = None
    most: float | None = None

    def reached(self, ratio: float) -> bool:
        """Whether a ratio is on the right side."""
        return ratio >= self.least if self.least is not None else ratio <= (self.most or 0)


TARGETS = (
    Target("requests/s ÷ null handler", "rate", SERVICE, NULL, 32, least=0.75),
    Target("requests/s ÷ null handler", "rate", SERVICE, NULL, 128, least=0.60),
    Target("requests/s ÷ stock", "rate", SERVICE, STOCK, 32, least=35),
    Target("p99 ÷ stock", "p99", SERVICE, STOCK, 32, most=1 / 25),
    Target("p50 ÷ null handler, batch size 1", "p50", SERVICE, NULL_ALONE, 1, most=2.5),
    Target("requests/s ÷ the same without metrics", "rate", SERVICE, NO_METRICS, 32, least=0.97),
    Target("requests/s ÷ the same without metrics", "rate", SERVICE, NO_METRICS, 128, least=0.97),
)
MAX_PSS = 800.0
# What is compared with another version: figure and connections.
VERSION_FIGURES = (("rate", 32), ("rate", 128), ("p50", 1), ("p99", 128))


def figures(
    samples: Sequence[Sample], figure: str, server: str, connections: int
) -> dict[int, float]:
    """A figure by round, of the measurements that were not disturbed."""
    return {
        sample.round: getattr(sample, figure)
        for sample in samples
        if (sample.server, sample.connections) == (server, connections) and not sample.disturbed
    }


def ratios(values: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    """Value ÷ base in each round that has both."""
    return [values[round_] / base[round_] for round_ in sorted(values.keys() & base.keys())]


def target_ratios(samples: Sequence[Sample], target: Target) -> list[float]:
    """The target's ratio in each round in which neither side was disturbed."""
    values, base = (
        figures(samples, target.figure, server, target.connections)
        for server in (target.server, target.base)
    )
    return ratios(values, base)


def spread(values: Sequence[float], form: _Form) -> str:
    """Median, smallest and largest."""
    if not values:
        return "every round was disturbed"
    return f"{form(statistics.median(values))} ({form(min(values))} to {form(max(values))})"


def text(samples: Sequence[Sample], memory: Sequence[Memory], facts: Mapping[str, Any]) -> str:
    """All figures as Markdown tables."""
    disturbed = [sample for sample in samples if sample.disturbed]
    kept = f"{len(samples) - len(disturbed)} of {len(samples)}"
    parts = [
        "# Benchmark",
        "\n".join(f"- {key}: {value}" for key, value in facts.items()),
        f"Medians (smallest to largest) of the measurements that were not disturbed, {kept}.",
        _servers(samples),
        _targets(samples, memory),
        _versions(samples, memory),
        _memory(memory),
    ]
    if disturbed:
        lines = [
            f"- round {s.round}, {s.server}, {s.connections} connections: {s.rate:,.0f} "
            f"requests/s, steal {s.steal:.1%}, other processes {s.foreign:.1%}"
            for s in disturbed
        ]
        parts += ["Disturbed, and left out:", "\n".join(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def plot(samples: Sequence[Sample]) -> str:
    """Rate and p99 by connections, a line a server with the range of its rounds; an `<svg>`.

    Empty if every measurement was disturbed.
    """
    samples = [sample for sample in samples if not sample.disturbed]
    panels = (("rate", "requests a second", 1.0), ("p99", "p99 latency, ms", 1e3))

    def draw(axes: Any) -> None:
        if not samples:
            return
        for axis, (name, label, scale) in zip(axes, panels, strict=True):
            for number, server in enumerate(dict.fromkeys(sample.server for sample in samples)):
                points: dict[int, list[float]] = {}
                for s in samples:
                    if s.server == server:
                        points.setdefault(s.connections, []).append(scale * getattr(s, name))
                middle = {n: statistics.median(values) for n, values in sorted(points.items())}
                below = [middle[n] - min(points[n]) for n in middle]
                above = [max(points[n]) - middle[n] for n in middle]
                heights, errors = list(middle.values()), [below, above]
                style = "-" if number < 10 else "--"  # matplotlib has ten colours
                axis.errorbar(
                    [*middle], heights, errors, marker="o", capsize=3, label=server, linestyle=style
                )
            axis.set(xscale="log", yscale="log", xlabel="connections", ylabel=label)
            charts.plain_numbers(axis.yaxis)
            ticks = sorted({sample.connections for sample in samples})
            axis.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
            axis.xaxis.minorticks_off()
            axis.grid(alpha=0.3)
        # Over no line, wherever those are.
        axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")

    return charts.svg(draw)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; empty without rows."""
    lines = [head, ["---"] * len(head), *rows] if rows else []
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rate(value: float) -> str:
    return f"{value:,.0f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def _mib(value: float) -> str:
    return f"{value:.0f}"


def _ratio(value: float) -> str:
    return f"{value:.3g}"


def _servers(samples: Sequence[Sample]) -> str:
    rows = []
    for server, connections in dict.fromkeys((s.server, s.connections) for s in samples):
        good = [s for s in samples if (s.server, s.connections) == (server, connections)]
        good = [s for s in good if not s.disturbed]
        batch = [s.batch for s in good if s.batch]
        failed = max((s.failed for s in good), default=0)
        stages = [
            f"{stage} {statistics.median([s.stages[stage] for s in good]):.0f}"
            for stage in (good[0].stages if good else ())
        ]
        rows.append(
            [
                server,
                f"{connections}",
                spread([s.rate for s in good], _rate)
                + (f", {failed:.0%} failed" if failed else ""),
                spread([s.p50 for s in good], _milliseconds),
                spread([s.p99 for s in good], _milliseconds),
                f"{statistics.median(batch):.1f}" if batch else "",
                ", ".join(stages),
            ]
        )
    head = ["server", "connections", "requests/s", "p50 ms", "p99 ms", "batch"]
    return table([*head, "µs a request in worker"], rows)


def _targets(samples: Sequence[Sample], memory: Sequence[Memory]) -> str:
    rows = []
    for target in TARGETS:
        if values := target_ratios(samples, target):
            verdict = "reached" if target.reached(statistics.median(values)) else "MISSED"
            bound = f"≥ {target.least:g}" if target.least is not None else f"≤ {target.most:g}"
            rows.append(
                [target.name, f"{target.connections}", bound, spread(values, _ratio), verdict]
            )
    if pss := [m.pss for m in memory if m.server == SERVICE]:
        verdict = "reached" if statistics.median(pss) <= MAX_PSS else "MISSED"
        rows.append(["memory (PSS), MiB", "", f"≤ {MAX_PSS:g}", spread(pss, _mib), verdict])
    return table(["figure", "connections", "target", "measured", ""], rows)


def _versions(samples: Sequence[Sample], memory: Sequence[Memory]) -> str:
    """This version beside the other, if there is one."""
    rows = []

    def add(name: str, connections: str, form: _Form, *values: Mapping[int, float]) -> None:
        spreads = [spread([*side.values()], form) for side in values]
        rows.append([name, connections, *spreads, spread(ratios(*values), _ratio)])

    both = (SERVICE, OTHER)
    measured = {s.connections for s in samples if s.server == OTHER}
    for figure, connections in VERSION_FIGURES:
        if connections in measured:
            is_rate = figure == "rate"
            name, form = ("requests/s", _rate) if is_rate else (f"{figure} ms", _milliseconds)
            values = [figures(samples, figure, server, connections) for server in both]
            add(name, f"{connections}", form, *values)
    if measured:
        pss = [{m.round: m.pss for m in memory if m.server == server} for server in both]
        add("PSS MiB", "", _mib, *pss)
    return table(["figure", "connections", *both, f"{SERVICE} ÷ {OTHER}"], rows)


def _memory(memory: Sequence[Memory]) -> str:
    rows = []
    for server in dict.fromkeys(m.server for m in memory):
        own = [m for m in memory if m.server == server]
        rows.append(
            [server, spread([m.pss for m in own], _mib), spread([m.rss for m in own], _mib)]
        )
    return table(["server", "PSS MiB", "RSS MiB"], rows)
