"""The highest rate of Poisson arrivals at which the service still holds a latency objective."""

import json
import math
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadtest import charts, generator, report
from loadtest.objectives import Outcome, enough_samples
from loadtest.recorder import COLUMNS, FAILED, LATENCY, SENT, Floats, percentile
from loadtest.servers import ROOT

USERS = {"mnist-png": "MnistImages", "mnist-json": "MnistBatches", "xor": "XorPairs"}
_SOURCES_PER_PROCESS = 4
# Answers ÷ requests in a window; fewer show a growing queue.
_MIN_ANSWERED = 0.9
_PERCENTILES = (50.0, 95.0, 99.0)


class CapacityError(Exception):
    """The search cannot go on; the message says why."""


@dataclass(frozen=True)
class Objective:
    """`p99=25ms`: that percentage of the requests takes no longer than that."""

    percent: float
    milliseconds: float

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """Read the form of the command line.

        Raises:
            ValueError: the text has another form.
        """
        match = re.fullmatch(r"p(\d{1,2}(?:\.\d+)?)=(\d+(?:\.\d+)?)(ms|s)", text)
        if not match or float(match[2]) == 0:
            raise ValueError(f"expected an objective such as p99=25ms, got {text!r}")
        return cls(float(match[1]), float(match[2]) * (1000 if match[3] == "s" else 1))

    def __str__(self) -> str:
        return f"p{self.percent:g} of {self.milliseconds:g} ms"


@dataclass(frozen=True)
class Probe:
    """One rate that was tried.

    Attributes:
        rate: requests a second that were to be sent.
        answered: successful answers a second that arrived while they were sent.
        latency_ms: by percentile.
        windows_ms: the objective's percentile in each window that had requests.
        batch: mean number of requests in a batch of the server.
        held: whether the objective was held.
        reason: why it was not.
        generator_limited: whether the generator could not send on time.
    """

    rate: float
    answered: float
    latency_ms: dict[str, float]
    windows_ms: list[float]
    batch: float
    held: bool
    reason: str
    generator_limited: bool


@dataclass(frozen=True)
class Search:
    """How to look for the rate.

    Attributes:
        window: seconds; each of `windows` in a row must hold the objective.
        low, high: the first rate, and the highest.
        precision: relative, of the result.
        processes: of the generator.
    """

    objective: Objective
    scenario: str
    window: float
    windows: int
    low: float
    high: float
    precision: float
    processes: int


def evaluate(
    search: Search, rate: float, rows: Floats, document: dict[str, Any], exit_code: int
) -> Probe:
    """Judge a run at one rate by its results.

    Like perf_analyzer, it asks for several windows in a row that agree: in each the requests to be
    sent must hold the objective, and at least nine tenths as many successful answers must arrive.
    Nothing is under way when the first window begins, and some answers are when it ends, so windows
    have to be ten times as long as the latency.

    Args:
        search: what is sought.
        rate: requests a second that were to be sent.
        rows: every request, float64 [n, 4], n > 0.
        document: `results.json`.
        exit_code: Locust's.
    """
    objective = search.objective
    windows = [(n * search.window, (n + 1) * search.window) for n in range(search.windows)]
    sent = rows[:, SENT] - rows[:, SENT].min()
    arrived = (sent + rows[:, LATENCY])[rows[:, FAILED] == 0]
    answered = [int(((arrived >= start) & (arrived < end)).sum()) for start, end in windows]
    latencies = [rows[(sent >= start) & (sent < end), LATENCY] for start, end in windows]
    windows_ms = [1e3 * percentile(part, objective.percent) for part in latencies if len(part)]
    answers, due = min(
        zip(answered, map(len, latencies), strict=True), key=lambda pair: pair[0] / max(pair[1], 1)
    )
    failed = int(rows[:, FAILED].sum())
    late = [text for text in document["invalid"] if "generator" in text]
    over = int((rows[:, LATENCY] * 1e3 > objective.milliseconds).sum())
    reason = ""
    if exit_code not in set(Outcome):
        reason = f"Locust ended with exit code {exit_code}"
    elif late:
        reason = "the generator was late"
    elif document["invalid"] or document["faults"]:
        reason = "; ".join(document["invalid"] + document["faults"])
    elif failed:
        reason = f"{failed} requests failed"
    elif max(windows_ms) > objective.milliseconds:
        reason = f"p{objective.percent:g} over {objective.milliseconds:g} ms in a window"
    elif len(windows_ms) < search.windows:
        reason = "no request in a window"
    elif not enough_samples(len(rows), over, objective.percent):
        reason = f"{len(rows)} requests are too few to show it; use longer windows"
    elif answers < _MIN_ANSWERED * due:
        reason = f"the queue grew: {answers} answers to {due} requests in a window"
    model = search.scenario.partition("-")[0]
    return Probe(
        rate=rate,
        answered=sum(answered) / (search.window * search.windows),
        latency_ms={f"p{p:g}": 1e3 * percentile(rows[:, LATENCY], p) for p in _PERCENTILES},
        windows_ms=windows_ms,
        batch=document["server"].get(model, {}).get("batch", 0.0),
        held=not reason,
        reason=reason,
        generator_limited=bool(late),
    )


def probe(search: Search, rate: float, host: str, telemetry: str) -> Probe:
    """Run Locust at one rate.

    Raises:
        CapacityError: Locust left no results, or the server cannot be reached.
    """
    seconds = search.window * search.windows
    objective = search.objective
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        limits = f'[{search.scenario}]\n"p{objective.percent:g}" = {objective.milliseconds}\n'
        (directory / "objectives.toml").write_text(limits)
        command = generator.command(host, telemetry, artifacts=scratch)
        sources = str(_SOURCES_PER_PROCESS * search.processes)
        command += ["--users", sources]
        command += ["--processes", str(search.processes)] if search.processes > 1 else []
        command += ["--spawn-rate", sources, "--run-time", f"{math.ceil(seconds) + 1}s"]
        command += ["--arrival-rate", f"{rate:g}"]
        command += ["--objectives", str(directory / "objectives.toml"), USERS[search.scenario]]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        try:
            document = json.loads((directory / report.RESULTS).read_text())
            with np.load(directory / report.LATENCIES) as latencies:
                rows = latencies.get(search.scenario, np.empty((0, COLUMNS)))
        except OSError:
            raise CapacityError(f"Locust left no results:\n{done.stderr[-2000:]}") from None
        if not len(rows):
            raise CapacityError("; ".join(document["invalid"]) or "no request was sent")
    return evaluate(search, rate, rows, document, done.returncode)


def find(search: Search, try_rate: Callable[[float], Probe]) -> list[Probe]:
    """Double the rate until the objective is missed, then halve the gap until it is small.

    Args:
        search: bounds and precision.
        try_rate: probes one rate.

    Returns:
        Every probe, in order.
    """
    probes: list[Probe] = []
    low, high = 0.0, search.high

    def attempt(rate: float) -> bool:
        result = try_rate(rate)
        if not result.held and not result.generator_limited:
            # A hiccup of the machine spoils one run; a rate that is too high fails again.
            probes.append(result)
            result = try_rate(rate)
        probes.append(result)
        return result.held

    rate = search.low
    while attempt(rate):
        low = rate
        if rate >= search.high:
            return probes
        rate = min(2 * rate, search.high)
    high = rate
    while high - low > search.precision * high and high > 1:
        middle = (low + high) / 2
        if attempt(middle):
            low = middle
        else:
            high = middle
    return probes


def best(probes: Sequence[Probe]) -> Probe | None:
    """The highest rate that was held."""
    return max((p for p in probes if p.held), key=lambda p: p.rate, default=None)


def summary(search: Search, probes: Sequence[Probe]) -> str:
    """The result in a sentence."""
    held = best(probes)
    if held is None:
        return f"{search.objective} was held at no rate: {probes[-1].reason}"
    text = f"{held.rate:.0f} requests a second hold {search.objective} ({search.scenario})"
    above = [p for p in probes if not p.held and p.rate > held.rate]
    if not above:
        return f"{text}; no higher rate was tried"
    if all(p.generator_limited for p in above):
        return f"at least {text}; beyond that the generator is the limit"
    return text


def rows_of(probes: Sequence[Probe]) -> tuple[list[str], list[list[Any]]]:
    """Head and rows of the table of latency against rate."""
    head = ["rate, per s", "answered", *(f"p{p:g} ms" for p in _PERCENTILES), "batch", "verdict"]
    return head, [
        [
            f"{p.rate:.0f}",
            f"{p.answered:.0f}",
            *(f"{value:.2f}" for value in p.latency_ms.values()),
            f"{p.batch:.1f}",
            "held" if p.held else p.reason,
        ]
        for p in sorted(probes, key=lambda p: p.rate)
    ]


def write(search: Search, probes: Sequence[Probe], directory: Path) -> None:
    """Write `capacity.json` and `capacity.html`."""
    directory.mkdir(parents=True, exist_ok=True)
    result = best(probes)
    document = {
        "objective": asdict(search.objective),
        "search": asdict(search),
        "capacity": result.rate if result else None,
        "summary": summary(search, probes),
        "probes": [asdict(p) for p in probes],
    }
    (directory / "capacity.json").write_text(json.dumps(document, indent=1) + "\n")

    def draw(axes: Any) -> None:
        latency, throughput = axes
        ordered = sorted(probes, key=lambda p: p.rate)
        rates = [p.rate for p in ordered]
        for name in ordered[0].latency_ms:
            latency.plot(rates, [p.latency_ms[name] for p in ordered], marker="o", label=name)
        limit = search.objective.milliseconds
        latency.axhline(limit, color="gray", linestyle="--", label="objective")
        latency.set(xlabel="requests a second sent", ylabel="latency, ms", yscale="log")
        latency.legend(fontsize="small")
        charts.plain_numbers(latency.yaxis)
        throughput.plot(rates, rates, color="gray", linestyle="--", label="as many as sent")
        throughput.plot(rates, [p.answered for p in ordered], marker="o", label="answered")
        throughput.set(xlabel="requests a second sent", ylabel="requests a second answered")
        throughput.legend(fontsize="small", loc="upper left")
        batch = throughput.twinx()
        batch.plot(rates, [p.batch for p in ordered], marker="s", color="tab:orange")
        batch.set_ylabel("requests in a batch", color="tab:orange")
        for axis in axes:
            axis.grid(alpha=0.3)

    page = report.render("Capacity", [summary(search, probes)], charts.svg(draw), [rows_of(probes)])
    (directory / "capacity.html").write_text(page)
