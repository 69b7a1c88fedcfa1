"""Writes bench/RESULTS.md and its plots from the results of a run."""

import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import report
from bench.errors import BenchError
from bench.measure import Sample
from bench.open_loop import OBJECTIVE
from bench.peers.catalogue import PEERS
from bench.report import spread, table
from bench.servers import SERVICE
from bench.side_by_side import CLOSED, FAULTS, OPEN, OTHER_WORKERS
from loadtest import charts

_BEGIN, _END = "<!-- peers -->", "<!-- end of peers -->"
_FRAMEWORKS = ("litserve", "bentoml", "ray", "mlserver", "pytriton")


@dataclass(frozen=True)
class Target:
    """Ratios of this service to a peer that are to be reached; None where nothing is asked."""

    rate_32: float | None
    rate_128: float | None
    p50: float
    open_rate: float


TARGETS: dict[str, Target] = {
    "starlette-onnx": Target(1.0, 1.2, 1.3, 1.2),
    "starlette-torchscript": Target(1.4, 1.5, 0.6, 1.5),
    "fastapi": Target(2, 3, 1.8, 3),
    **dict.fromkeys(_FRAMEWORKS, Target(5, 5, 0.5, 4)),
    "stock": Target(60, None, 0.3, 60),
}


class Figures:
    """What was measured of one peer, and of this service beside it.

    Args:
        document: the results.
        peer: key of `PEERS`.
        kind: `closed`, or with the `other workers`.
    """

    def __init__(self, document: Mapping[str, Any], peer: str, kind: str = CLOSED) -> None:
        parts = [p for p in document["parts"] if p["peer"] == peer and "error" not in p]
        self.title = PEERS[peer].title
        self.closed = [part for part in parts if part["kind"] == kind]
        self.open = [part["open"] for part in parts if part["kind"] == OPEN]
        self.samples = [Sample(**s) for part in self.closed for s in part["samples"]]

    def values(self, figure: str, connections: int, name: str | None = None) -> list[float]:
        """Of each round with an undisturbed measurement."""
        name = name or self.title
        return [*report.figures(self.samples, figure, name, connections).values()]

    def ratios(self, figure: str, connections: int) -> list[float]:
        """This service's ÷ the peer's, by round."""
        both = (SERVICE, self.title)
        return report.ratios(
            *(report.figures(self.samples, figure, name, connections) for name in both)
        )

    def open_ratios(self) -> list[float]:
        """Likewise, of the highest rates of an open loop."""
        rates = [[part[name]["rate"] for name in (SERVICE, self.title)] for part in self.open]
        return [own / peer for own, peer in rates if own is not None and peer]


def write(document: Mapping[str, Any], directory: Path) -> None:
    """Write RESULTS.md and results/*.svg.

    Args:
        document: as `bench.side_by_side.Results` has it.
        directory: for both; what RESULTS.md says of the reasons is kept.
    """
    plots = directory / "results"
    plots.mkdir(parents=True, exist_ok=True)
    figures = {peer: Figures(document, peer) for peer in _measured(document)}
    (plots / "connections.svg").write_text(_by_connections(figures))
    (plots / "open.svg").write_text(_open_plot(figures))
    file = directory / "RESULTS.md"
    reasons = Path(__file__).with_name("REASONS.md").read_text().strip()
    file.write_text("\n\n".join(filter(None, _sections(document, figures, reasons))) + "\n")


def write_readme(document: Mapping[str, Any], file: Path) -> None:
    """Put the short table between the two marks of a README.

    Raises:
        BenchError: it has no marks.
    """
    figures = {peer: Figures(document, peer) for peer in _measured(document)}
    before, begin, rest = file.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise BenchError(f"{file.name} has no {_BEGIN} with {_END} after it")
    file.write_text(f"{before}{begin}\n{short_table(figures)}\n{end}{after}")


def _measured(document: Mapping[str, Any]) -> list[str]:
    return [p for p in PEERS if any(part["peer"] == p for part in document["parts"])]


def short_table(figures: Mapping[str, Figures]) -> str:
    """The most important figures, for the README."""
    head = ["server", "requests/s, 32 connections", "128", "p50 ms, 1 connection"]
    head += [f"highest rate, p99 ≤ {OBJECTIVE.milliseconds:g} ms", "PSS MiB"]
    rows = [
        [
            row["title"],
            _median(row["rate"][32], _rate),
            _median(row["rate"][128], _rate),
            _median(row["p50"], _milliseconds),
            _median(row["open"], _rate),
            _median(row["memory"], _rate),
        ]
        for row in _rows(figures)
    ]
    return table(head, rows)


def _rows(figures: Mapping[str, Figures]) -> Iterator[dict[str, Any]]:
    """This service, with all measurements beside peers, and each peer."""
    every = [*figures.values()]
    for name, own in [(SERVICE, every), *((each.title, [each]) for each in every)]:
        which = "service" if name == SERVICE else "peer"
        parts = [part for each in own for part in each.closed]
        yield {
            "title": name,
            "rate": {
                n: [v for each in own for v in each.values("rate", n, name)]
                for n in (1, 8, 32, 128)
            },
            "p50": [v for each in own for v in each.values("p50", 1, name)],
            "p99": [v for each in own for v in each.values("p99", 32, name)],
            "cpu": [v for each in own for v in each.values("cpu", 32, name)],
            "failed": max(
                (s.failed for each in own for s in each.samples if s.server == name), default=0
            ),
            "memory": [part["memory"][name] for part in parts],
            "start": [part["start"][which] for part in parts if which in part["start"]],
            "open": [
                part[name]["rate"]
                for each in own
                for part in each.open
                if part[name]["rate"] is not None
            ],
        }


def _sections(
    document: Mapping[str, Any], figures: Mapping[str, Figures], reasons: str
) -> list[str]:
    runs = document["runs"]
    samples = [sample for each in figures.values() for sample in each.samples]
    disturbed = sum(sample.disturbed for sample in samples)
    facts = {key: ", ".join(dict.fromkeys(str(run[key]) for run in runs)) for key in runs[0]}
    del facts["command"]
    errors = [part for part in document["parts"] if "error" in part]
    kept = (
        f"Medians of the rounds. Of {len(samples)} measurements {disturbed} were disturbed by "
        "other processes or the hypervisor, repeated and left out."
    )
    return [
        "# Side by side\n\nGenerated by `make bench-peers`, as [README.md](README.md#peers) says.",
        "\n".join(f"- {key}: {value}" for key, value in facts.items()),
        kept,
        "## Throughput, latency and cost",
        _table(figures),
        "![Requests a second and p99 by connections](results/connections.svg)",
        "![p99 by rate of Poisson arrivals](results/open.svg)",
        "## This service ÷ peer",
        "Each is of measurements of the same minute: median (smallest to largest), n rounds.",
        _targets(figures),
        "## Where this service loses, and why",
        _losses(figures),
        reasons,
        "## What happens",
        _faults(document),
        "## Workers",
        _workers(document, figures),
        "## Not measured" if errors else "",
        "\n".join(
            f"- {PEERS[p['peer']].title if p['peer'] in PEERS else SERVICE}, {p['kind']}: "
            f"{_last_line(p['error'])}"
            for p in errors
        ),
    ]


def _table(figures: Mapping[str, Figures]) -> str:
    head = ["server", "1", "8", "32", "128", "p50 ms, 1", "p99 ms, 32"]
    head += [f"highest rate, p99 ≤ {OBJECTIVE.milliseconds:g} ms", "CPU s a 1,000", "PSS MiB"]
    head += ["start s", "lines"]
    lines = {peer.title: str(peer.lines) for peer in PEERS.values()}
    rows = [
        [
            row["title"] + (f" ({row['failed']:.0%} failed at worst)" if row["failed"] else ""),
            *(_median(row["rate"][n], _rate) for n in (1, 8, 32, 128)),
            _median(row["p50"], _milliseconds),
            _median(row["p99"], _milliseconds),
            _median(row["open"], _rate),
            _median(row["cpu"], "{:.3f}".format),
            _median(row["memory"], _rate),
            _median(row["start"], "{:.1f}".format),
            lines.get(row["title"], ""),
        ]
        for row in _rows(figures)
    ]
    legend = (
        "The first four columns are requests/s in a closed loop of so many connections; CPU at 32 "
        "connections; start is from the command to the first answer; lines are those of the peer's "
        "own server file."
    )
    return f"{legend}\n\n{table(head, rows)}"


def _targets(figures: Mapping[str, Figures]) -> str:
    rows = []
    for peer, own in figures.items():
        target = TARGETS.get(peer, Target(None, None, 0, 0))
        cells = [
            (own.ratios("rate", 32), target.rate_32, True),
            (own.ratios("rate", 128), target.rate_128, True),
            (own.ratios("p50", 1), target.p50 or None, False),
            (own.open_ratios(), target.open_rate or None, True),
        ]
        rows.append([own.title, *(_verdict(*cell) for cell in cells)])
    head = ["peer", "requests/s, 32", "requests/s, 128", "p50, 1"]
    return table([*head, "highest rate"], rows)


def _losses(figures: Mapping[str, Figures]) -> str:
    """Where a peer's median is better, from the largest difference on."""
    found = []
    for own in figures.values():
        rates = [
            *((f"requests/s, {n} connections", own.ratios("rate", n)) for n in (1, 8, 32, 128)),
            ("highest rate", own.open_ratios()),
        ]
        for figure, values in rates:
            if values and (middle := statistics.median(values)) < 1:
                found.append((middle, f"- {own.title}: {middle:.2f} times its {figure}"))
        times = own.ratios("p50", 1)
        if times and (middle := statistics.median(times)) > 1:
            found.append((1 / middle, f"- {own.title}: {middle:.2f} times its p50, 1 connection"))
    lines = [line for _, line in sorted(found)]
    has_all = all(own.samples for own in figures.values())
    return "\n".join(lines) or ("Nowhere in this run." if has_all else "")


def _verdict(values: Sequence[float], bound: float | None, is_least: bool) -> str:
    if not values:
        return "not measured"
    text = f"{spread(values, '{:.2f}'.format)}, n = {len(values)}"
    if bound is None:
        return text
    middle = statistics.median(values)
    reached = middle >= bound if is_least else middle <= bound
    return f"{text}; {'≥' if is_least else '≤'} {bound:g} {'reached' if reached else 'MISSED'}"


def _faults(document: Mapping[str, Any]) -> str:
    rows = []
    for name in ("service", *PEERS):
        found = [p for p in document["parts"] if (p["kind"], p["peer"]) == (FAULTS, name)]
        found = [part["faults"] for part in found if "faults" in part]
        if found:
            title = PEERS[name].title if name in PEERS else SERVICE
            rows.append([title, *_fault_cells(found[-1])])
    head = ["server", "one bad picture among 32", "SIGTERM, 20 in flight", "a worker killed"]
    head += ["900 bodies of 1 MiB, 300 connections", "a form's content type"]
    legend = (
        "Failed requests of how many: of the bad picture those of its 31 neighbours, in eight "
        "tries, and the statuses that it got itself; of SIGTERM those that were accepted and had "
        "no answer 200, and the exit code; of a killed worker those of 16 clients within 4 s."
    )
    return f"{legend}\n\n{table(head, rows)}" if rows else ""


def _fault_cells(found: Mapping[str, Any]) -> list[str]:
    bad, stopped, killed, large = (found[name] for name in ("bad", "stopped", "killed", "large"))

    def after(step: Mapping[str, Any]) -> str:
        return "" if step.get("recovered", True) else "; **did not answer again**"

    own = ", ".join(f"{status}" for status in bad["bad"])
    took = f"in {stopped['seconds']:.1f} s" if stopped["exit_code"] is not None else "after 40 s"
    return [
        f"{bad['failed']} of {bad['neighbours']}; itself {own}{after(bad)}",
        f"{stopped['failed']} of {stopped['sent']}; exit code {stopped['exit_code']} {took}",
        f"{killed['failed']} of {killed['sent']}{after(killed)}"
        if "sent" in killed
        else "one process",
        ", ".join(f"{status}: {count}" for status, count in large["statuses"].items())
        + f" in {large['seconds']:.0f} s{'; **ended**' if large['ended'] else after(large)}",
        f"{found['form']['status']}",
    ]


def _workers(document: Mapping[str, Any], figures: Mapping[str, Figures]) -> str:
    rows = []
    for peer, chosen in figures.items():
        other = Figures(document, peer, OTHER_WORKERS)
        if other.samples:
            for figure, workers, what in (
                (chosen, PEERS[peer].workers, "choice"),
                (other, 3 - PEERS[peer].workers, "runner-up"),
            ):
                cells = [_median(figure.values("rate", n), _rate) for n in (1, 32, 128)]
                cells.append(_median(figure.values("p99", 32), _milliseconds))
                rows.append([chosen.title, str(workers), what, *cells])
    head = ["server", "workers", "", "requests/s, 1 connection", "32", "128", "p99 ms, 32"]
    return table(head, rows)


def _median(values: Sequence[float], form: Callable[[float], str]) -> str:
    return form(statistics.median(values)) if values else "-"


def _rate(value: float) -> str:
    return f"{value:,.0f}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def _last_line(error: str) -> str:
    lines = [line for line in error.splitlines() if line.strip()]
    # Paths are of the machine that measured.
    return re.sub(r"/\S+/", "", lines[-1].strip()) if lines else "it ended"


def _by_connections(figures: Mapping[str, Figures]) -> str:
    """Of this service all measurements beside peers; of each of those its own."""
    samples = [s for each in figures.values() for s in each.samples]
    return report.plot(sorted(samples, key=lambda s: s.server != SERVICE))


def _open_plot(figures: Mapping[str, Figures]) -> str:
    """p99 of each rate that was tried, and the highest that each server held."""
    found: dict[str, list[Mapping[str, Any]]] = {SERVICE: []}
    for each in figures.values():
        for part in each.open:
            for name, result in part.items():
                found.setdefault(name, []).append(result)

    def draw(axes: Any) -> None:
        if not any(results for results in found.values()):
            return
        by_rate, highest = axes
        for number, (name, results) in enumerate(found.items()):
            probes = sorted(
                (p for result in results for p in result["probes"] if p["p99"] < 1e6),
                key=lambda p: p["rate"],
            )
            color = f"C{number}" if number < 10 else "black"
            by_rate.plot(
                [p["rate"] for p in probes],
                [p["p99"] for p in probes],
                ".",
                color=color,
                label=name,
            )
            if rates := [result["rate"] for result in results if result["rate"] is not None]:
                rate = statistics.median(rates)
                highest.barh(name, rate, color=color)
                highest.annotate(f" {rate:,.0f}", (rate, name), va="center", fontsize="small")
        by_rate.tick_params(axis="x", labelsize="small", rotation=30)
        by_rate.axhline(OBJECTIVE.milliseconds, color="gray", linestyle="--")
        by_rate.set(xlabel="requests a second sent", ylabel="p99, ms", xscale="log", yscale="log")
        charts.plain_numbers(by_rate.xaxis, by_rate.yaxis)
        highest.set(xlabel=f"highest rate with {OBJECTIVE}, requests/s")
        highest.invert_yaxis()
        highest.margins(x=0.15)
        by_rate.grid(alpha=0.3)

    return charts.svg(draw)
