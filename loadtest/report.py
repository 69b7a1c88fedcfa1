"""The results of a run: tables for the terminal, JSON, every request, and a page with charts."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from loadtest import charts
from loadtest.objectives import Judgement
from loadtest.recorder import LAG, LATENCY, Results, percentile
from loadtest.server_side import ModelSide

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9, 100.0)
RESULTS, LATENCIES, PAGE = "results.json", "latencies.npz", "report.html"
Table = tuple[Sequence[str], Sequence[Sequence[Any]]]
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Finished:
    """A run that has been judged.

    Attributes:
        served: what the server counted, by model.
        faults: failures besides missed objectives, such as requests that are not accounted for.
        why_invalid: reasons why the run cannot be judged.
        verdict: `PASSED`, `FAILED` or `INVALID`, with the reason after a colon.
    """

    results: Results
    judgements: Sequence[Judgement]
    served: Mapping[str, ModelSide]
    faults: Sequence[str]
    why_invalid: Sequence[str]
    verdict: str


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format a table as plain text; every column but the first is aligned to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def _scenarios(finished: Finished) -> Table:
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
                *(f"{1e3 * percentile(scenario.rows[:, LATENCY], p):.2f}" for p in PERCENTILES),
                f"{1e3 * percentile(scenario.rows[:, LAG], 99):.2f}",
                " ".join(f"{code}:{count}" for code, count in scenario.codes.items()),
            ]
        )
    return head, rows


def _served(finished: Finished) -> Table:
    stages = ["queue", "parse", "forward", "respond", "batch"]
    head = ["server, ms a batch", "answers", "refused", "batch size", *stages]
    rows: list[Sequence[Any]] = [
        [
            model,
            sum(side.answers.values()),
            side.refused,
            f"{side.batch:.1f}",
            *(f"{side.milliseconds[stage]:.2f}" for stage in stages),
        ]
        for model, side in finished.served.items()
        if side.answers
    ]
    return head, rows


def _objectives(finished: Finished) -> Table:
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
    """The report for the terminal."""
    parts = [
        table(*part)
        for part in (_scenarios(finished), _served(finished), _objectives(finished))
        if part[1]
    ]
    return "\n\n".join(["", *parts, "\n".join(_messages(finished))])


def document(finished: Finished) -> dict[str, Any]:
    """The content of `results.json`."""
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
                    f"p{p:g}": 1e3 * percentile(scenario.rows[:, LATENCY], p) for p in PERCENTILES
                },
                "send_lag_ms": {"p99": 1e3 * percentile(scenario.rows[:, LAG], 99)},
            }
            for name, scenario in results.scenarios.items()
        },
        "objectives": [asdict(j) | {"verdict": j.verdict.value} for j in finished.judgements],
        "server": {name: vars(side) for name, side in finished.served.items()},
        "faults": list(finished.faults),
        "invalid": list(finished.why_invalid),
    }


def write(finished: Finished, directory: Path) -> None:
    """Write `results.json`, `latencies.npz` and `report.html`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RESULTS).write_text(json.dumps(document(finished), indent=1) + "\n")
    rows = {name: scenario.rows for name, scenario in finished.results.scenarios.items()}
    np.savez_compressed(directory / LATENCIES, **rows)  # type: ignore[arg-type]
    when = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(finished.results.started))
    tables = (_scenarios(finished), _objectives(finished), _served(finished))
    page = render(
        f"Load test of {when}",
        _messages(finished)[:-1],
        charts.latency(finished.results) if rows else "",
        [table for table in tables if table[1]],
        finished.verdict,
    )
    (directory / PAGE).write_text(page)


def render(
    title: str,
    messages: Sequence[str],
    chart: str,
    tables: Sequence[Table],
    verdict: str = "",
) -> str:
    """An HTML page that refers to no other file.

    Args:
        title: text, like all the following except the chart.
        messages: a paragraph each.
        chart: an `<svg>` element, or empty.
        tables: head and rows.
        verdict: shown in the colour of its first word, `PASSED`, `FAILED` or `INVALID`.
    """
    return _TEMPLATES.get_template("page.html").render(
        title=title, messages=messages, chart=chart, tables=tables, verdict=verdict
    )
