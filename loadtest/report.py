"""What a run leaves behind: a table, JSON, every latency, and a page with the curves."""

import html
import io
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.objectives import Judgement
from loadtest.recorder import Results, percentile
from loadtest.server_side import ModelSide

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9, 100.0)
RESULTS, LATENCIES, PAGE = "results.json", "latencies.npz", "report.html"


@dataclass(frozen=True)
class Finished:
    """A run that has been judged.

    Attributes:
        served: what the server counted, by model.
        faults: what has failed besides objectives, such as requests that are not accounted for.
        why_invalid: reasons for which the run says nothing.
        verdict: of the whole, in a word.
    """

    results: Results
    judgements: Sequence[Judgement]
    served: Mapping[str, ModelSide]
    faults: Sequence[str]
    why_invalid: Sequence[str]
    verdict: str


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Plain text in columns, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def _scenarios(finished: Finished) -> tuple[Sequence[str], list[Sequence[Any]]]:
    names = [f"p{percent:g}" if percent < 100 else "max" for percent in PERCENTILES]
    head = ["scenario, ms", "requests", "per s", "failed", "accuracy", *names, "lag p99", "codes"]
    rows: list[Sequence[Any]] = []
    for name, scenario in finished.results.scenarios.items():
        accuracy = scenario.accuracy
        rows.append(
            [
                name,
                scenario.requests,
                f"{scenario.requests / finished.results.seconds:.1f}",
                scenario.counters["failed"],
                "" if accuracy is None else f"{accuracy:.4f}",
                *(f"{1e3 * percentile(scenario.rows[:, 1], p):.2f}" for p in PERCENTILES),
                f"{1e3 * percentile(scenario.rows[:, 2], 99):.2f}",
                " ".join(f"{code}:{count}" for code, count in scenario.codes.items()),
            ]
        )
    return head, rows


def _served(finished: Finished) -> tuple[Sequence[str], list[Sequence[Any]]]:
    stages = ["queue", "parse", "forward", "respond", "batch"]
    head = ["server, ms a batch", "requests", "batch size", *stages]
    rows: list[Sequence[Any]] = [
        [
            model,
            sum(side.codes.values()),
            f"{side.batch:.1f}",
            *(f"{side.milliseconds[stage]:.2f}" for stage in stages),
        ]
        for model, side in finished.served.items()
        if side.codes
    ]
    return head, rows


def _objectives(finished: Finished) -> tuple[Sequence[str], list[Sequence[Any]]]:
    rows: list[Sequence[Any]] = [
        [
            j.scenario,
            j.objective,
            f"{j.limit:g}",
            f"{j.measured:.4g}",
            j.verdict.value + (f": {j.note}" if j.note else ""),
        ]
        for j in finished.judgements
    ]
    return ["scenario", "objective", "limit", "measured", "verdict"], rows


def _messages(finished: Finished) -> list[str]:
    return [
        *(f"failed: {text}" for text in finished.faults),
        *(f"invalid: {text}" for text in finished.why_invalid),
        f"verdict: {finished.verdict}",
    ]


def text(finished: Finished) -> str:
    """For the terminal."""
    parts = [
        table(*part)
        for part in (_scenarios(finished), _served(finished), _objectives(finished))
        if part[1]
    ]
    return "\n\n".join(["", *parts, "\n".join(_messages(finished))])


def document(finished: Finished) -> dict[str, Any]:
    """For `results.json`."""
    results = finished.results
    return {
        "started": results.started,
        "seconds": results.seconds,
        "command": sys.argv,
        "verdict": finished.verdict,
        "scenarios": {
            name: {
                "requests": scenario.requests,
                "failed": scenario.counters["failed"],
                "codes": scenario.codes,
                "accuracy": scenario.accuracy,
                "latency_ms": {
                    f"p{p:g}": 1e3 * percentile(scenario.rows[:, 1], p) for p in PERCENTILES
                },
                "send_lag_ms": {"p99": 1e3 * percentile(scenario.rows[:, 2], 99)},
            }
            for name, scenario in results.scenarios.items()
        },
        "objectives": [asdict(j) | {"verdict": j.verdict.value} for j in finished.judgements],
        "server": {name: vars(side) for name, side in finished.served.items()},
        "faults": list(finished.faults),
        "invalid": list(finished.why_invalid),
    }


def write(finished: Finished, directory: Path) -> None:
    """Leave `results.json`, `latencies.npz` and `report.html`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RESULTS).write_text(json.dumps(document(finished), indent=1) + "\n")
    rows = {name: scenario.rows for name, scenario in finished.results.scenarios.items()}
    np.savez_compressed(directory / LATENCIES, **rows)  # type: ignore[arg-type]
    when = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(finished.results.started))
    tables = (_scenarios(finished), _objectives(finished), _served(finished))
    body = [
        f"<p class='{finished.verdict.partition(':')[0].lower()}'>{finished.verdict}</p>",
        *(f"<p>{html.escape(message)}</p>" for message in _messages(finished)[:-1]),
        curves(finished.results) if rows else "",
        *(html_table(*part) for part in tables if part[1]),
    ]
    (directory / PAGE).write_text(page(f"Load test of {when}", body))


def html_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The same columns as a table of a page."""

    def row(cells: Sequence[Any], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells)

    lines = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f"<table><tr>{row(head, 'th')}</tr>{lines}</table>"


def page(title: str, body: Sequence[str]) -> str:
    """A page that needs nothing but itself."""
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;"
        "color:#1b1f24}table{border-collapse:collapse;margin:1.5rem 0;font-size:13px}"
        "th,td{padding:.3rem .7rem;border-bottom:1px solid #d8dee4;text-align:right}"
        "th:first-child,td:first-child{text-align:left}th{background:#f6f8fa}"
        "svg{max-width:100%;height:auto}.passed,.failed,.invalid{display:inline-block;"
        "padding:.2rem 1rem;border-radius:1rem;color:#fff;font-weight:600}"
        ".passed{background:#1a7f37}.failed{background:#cf222e}.invalid{background:#9a6700}"
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html.escape(title)}</title><style>{style}</style></head>"
        f"<body><h1>{html.escape(title)}</h1>{''.join(body)}</body></html>\n"
    )


def figure(draw: Any, width: float = 11, height: float = 4.2, columns: int = 2) -> str:
    """An SVG that `draw` fills, to be part of a page."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    drawing, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained")
    draw(axes)
    buffer = io.StringIO()
    drawing.savefig(buffer, format="svg")
    plt.close(drawing)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def plain_numbers(*axes: Any) -> None:
    """Write the ticks of a logarithmic axis as 20 and not as 2 times 10 to the 1."""
    from matplotlib.ticker import FuncFormatter

    for axis in axes:
        for choose in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            choose(FuncFormatter(lambda value, _: f"{value:g}"))


def curves(results: Results) -> str:
    """Latency by percentile, and over the time of the run."""

    def draw(axes: Any) -> None:
        by_percentile, over_time = axes
        for name, scenario in results.scenarios.items():
            rows = scenario.rows
            nines = np.linspace(0, np.log10(max(len(rows), 2)), 200)
            percents = 100 * (1 - 10**-nines)
            values = 1e3 * np.percentile(rows[:, 1], percents, method="inverted_cdf")
            by_percentile.plot(nines, values, label=name)
            seconds = np.floor(rows[:, 0] - results.started).astype(int)
            moments = np.unique(seconds)
            tail = [1e3 * percentile(rows[seconds == s, 1], 99) for s in moments]
            over_time.plot(moments, tail, label=f"{name}, p99 of each second")
        ticks = range(int(by_percentile.get_xlim()[1]) + 1)
        labels = ["0", *(f"{100 * (1 - 10**-n):.10g}" for n in ticks[1:])]
        by_percentile.set_xticks(list(ticks), labels)
        by_percentile.set(xlabel="percentile", ylabel="latency, ms", yscale="log")
        over_time.set(xlabel="seconds into the run", ylabel="latency, ms", yscale="log")
        plain_numbers(*axes)
        for axis in axes:
            axis.grid(alpha=0.3)
            axis.legend(fontsize="small")

    return figure(draw)
