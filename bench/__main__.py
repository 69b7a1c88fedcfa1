"""This service beside TorchServe as it comes, in one run on one machine.

All servers run at once and are loaded one at a time by `wrk`, in rounds that go through every
server and number of connections, so that a machine that gets slower meets all alike. Ratios are of
the same round. A round in which others used the processors is shown and left out of the medians.

    python -m bench [--rounds N] [--seconds S] [--connections N ...] [--out DIR]
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.servers import PlainTorchServe
from handler.card import TORCHSCRIPT_FILE
from loadtest import server_side
from loadtest.charts import svg
from loadtest.servers import ROOT, Server, Service

PEERS = Path(__file__).parent / "peers"
IMAGE = ROOT / "samples" / "seven.png"
# Of the machine's processor time during a measurement.
MAX_STEAL = 0.02
MAX_FOREIGN = 0.05

SERVICE, NO_METRICS, STOCK = "this service", "without its metrics", "stock image handler"
NULL, NULL_ALONE = "null handler", "null handler, batch size 1"


class BenchError(Exception):
    """The benchmark cannot run; the message says what is missing."""


@dataclass(frozen=True)
class Sample:
    """One measurement of one server.

    Attributes:
        rate: requests answered a second, without those that were refused.
        refused: share of the requests.
        p50, p90, p99, p999: seconds.
        steal, foreign: shares of the machine's processor time that the hypervisor, and processes
            other than the generator and the servers, took.
        batch: requests in a batch, on average, where the server says so.
        stages: microseconds a request spent in each stage in the worker, where it says so.
    """

    server: str
    connections: int
    round: int
    rate: float
    refused: float
    p50: float
    p90: float
    p99: float
    p999: float
    steal: float
    foreign: float
    batch: float | None
    stages: dict[str, float]

    @property
    def disturbed(self) -> bool:
        """Whether something else was at work on this machine."""
        return self.steal > MAX_STEAL or self.foreign > MAX_FOREIGN


@dataclass(frozen=True)
class Target:
    """A ratio that is to be reached: `figure` of `server` over that of `base`."""

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


def archive(directory: Path, name: str, handler: Path, *options: str, config: str = "") -> Path:
    """Build an archive with the archiver's own command, for a peer."""
    directory.mkdir()
    command = [str(Path(sys.executable).with_name("torch-model-archiver"))]
    command += ["--model-name", name, "--version", "1.0", "--handler", str(handler), *options]
    if config:
        (directory / "model-config.yaml").write_text(config)
        command += ["--config-file", str(directory / "model-config.yaml")]
    environment = os.environ | {"TMPDIR": str(directory)}
    subprocess.run([*command, "--export-path", str(directory)], check=True, env=environment)
    return directory / f"{name}.mar"


def servers(store: Path, scratch: Path) -> dict[str, Server]:
    """Every server, not yet started."""
    with zipfile.ZipFile(store / "mnist.mar") as mar:
        (scratch / TORCHSCRIPT_FILE).write_bytes(mar.read(TORCHSCRIPT_FILE))
        silent = scratch / "silent" / "mnist.mar"
        silent.parent.mkdir()
        with zipfile.ZipFile(silent, "w") as copy:
            for name in mar.namelist():
                is_metrics = name == "handler/metrics.py"
                content = (PEERS / "no_metrics.py").read_bytes() if is_metrics else mar.read(name)
                copy.writestr(name, content)
    shutil.copy(store / "xor.mar", silent.parent)
    torchscript = ("--serialized-file", str(scratch / TORCHSCRIPT_FILE))
    stock = archive(scratch / "stock", "mnist", PEERS / "stock_handler.py", *torchscript)
    null = PEERS / "null_handler.py"
    batches = archive(scratch / "null", "mnist", null, config="batchSize: 64\nmaxBatchDelay: 1\n")
    alone = archive(scratch / "alone", "mnist", null, config="batchSize: 1\n")
    # Its log, a line or two a request, would be most of what a handler that does nothing costs.
    quiet = (f"-Dlog4j2.configurationFile={(ROOT / 'server' / 'log4j2.xml').as_uri()}",)
    tuned = {"default_workers_per_model": "1", "metrics_mode": "prometheus"}
    tuned |= {"job_queue_size": "300", "disable_system_metrics": "true"}
    return {
        SERVICE: Service(store),
        NO_METRICS: Service(silent.parent),
        STOCK: PlainTorchServe(stock, {}, PYTHONPATH=str(ROOT)),
        NULL: PlainTorchServe(batches, tuned, quiet),
        NULL_ALONE: PlainTorchServe(alone, tuned, quiet),
    }


def load(server: Server, connections: int, seconds: float) -> dict[str, float]:
    """Have `wrk` send the image over so many connections."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency"]
    command += ["-s", str(PEERS.parent / "wrk.lua"), f"{server.inference}/predictions/mnist"]
    command += ["--", str(IMAGE), "image/png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stderr.strip().splitlines()[-1])
    return result


def scrape(server: Server) -> dict[server_side.Sample, float]:
    """What the server counts; empty for one that is not this service."""
    if not isinstance(server, Service):
        return {}
    return server_side.scrape(f"{server.telemetry}/metrics")


def measure(
    name: str, all_servers: Mapping[str, Server], connections: int, round_: int, seconds: float
) -> Sample:
    """Load one server, watching what else the machine does meanwhile."""
    server = all_servers[name]

    def own() -> float:
        children = os.times()
        mine = children.user + children.system + children.children_user + children.children_system
        return mine + sum(each.cpu_seconds() for each in all_servers.values())

    own_before, machine_before, before = own(), psutil.cpu_times(), scrape(server)
    started = time.monotonic()
    result = load(server, connections, seconds)
    capacity = (time.monotonic() - started) * (psutil.cpu_count() or 1)
    machine, own_after, after = psutil.cpu_times(), own(), scrape(server)
    busy = sum(machine) - sum(machine_before) - (machine.idle - machine_before.idle)
    busy -= machine.iowait - machine_before.iowait
    steal = machine.steal - machine_before.steal
    refused = result["failed"] / max(result["requests"], 1)
    if refused and name != STOCK:  # whose queue of 100 is too short for 128 connections
        raise BenchError(f"{name}: {refused:.2%} of the requests failed")
    side = server_side.difference(before, after).get("mnist", server_side.ModelSide())
    return Sample(
        name,
        connections,
        round_,
        (result["requests"] - result["failed"]) / result["seconds"],
        refused,
        result["p50"],
        result["p90"],
        result["p99"],
        result["p999"],
        steal=steal / capacity,
        foreign=max(0.0, (busy - steal - (own_after - own_before)) / capacity),
        batch=side.batch or None,
        stages={
            stage: 1e3 * side.milliseconds[stage] / side.batch
            for stage in ("parse", "forward", "respond")
            if side.batch
        },
    )


def ratios(samples: Sequence[Sample], target: Target) -> list[float]:
    """The target's ratio in every round in which neither side was disturbed."""

    def by_round(server: str) -> dict[int, float]:
        return {
            sample.round: getattr(sample, target.figure)
            for sample in samples
            if (sample.server, sample.connections) == (server, target.connections)
            and not sample.disturbed
        }

    values, base = by_round(target.server), by_round(target.base)
    return [values[round_] / base[round_] for round_ in sorted(values.keys() & base.keys())]


def spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Median, smallest and largest."""
    if not values:
        return "every round was disturbed"
    return f"{form(statistics.median(values))} ({form(min(values))} to {form(max(values))})"


def report(samples: Sequence[Sample], memory: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """All figures as Markdown tables."""
    lines = ["# Benchmark", "", *(f"- {key}: {value}" for key, value in facts.items()), ""]
    disturbed = [sample for sample in samples if sample.disturbed]
    kept = f"{len(samples) - len(disturbed)} of {len(samples)}"
    lines += [
        f"Medians (smallest to largest) of the measurements that were not disturbed, {kept}.",
        "",
        "| server | connections | requests/s | p50 ms | p99 ms | batch | us a request in worker |",
        "|---|---|---|---|---|---|---|",
    ]

    def milliseconds(value: float) -> str:
        return f"{value * 1e3:.2f}"

    for server, connections in dict.fromkeys((s.server, s.connections) for s in samples):
        good = [s for s in samples if (s.server, s.connections) == (server, connections)]
        good = [s for s in good if not s.disturbed]
        batch = [s.batch for s in good if s.batch]
        refused = max((s.refused for s in good), default=0)
        note = f", and {refused:.0%} refused" if refused else ""
        stages = [
            f"{stage} {statistics.median([s.stages[stage] for s in good]):.0f}"
            for stage in (good[0].stages if good else ())
        ]
        lines.append(
            f"| {server} | {connections} "
            f"| {spread([s.rate for s in good], '{:,.0f}'.format)}{note} "
            f"| {spread([s.p50 for s in good], milliseconds)} "
            f"| {spread([s.p99 for s in good], milliseconds)} "
            f"| {f'{statistics.median(batch):.1f}' if batch else ''} | {', '.join(stages)} |"
        )
    lines += ["", "| figure | connections | target | measured | |", "|---|---|---|---|---|"]
    for target in TARGETS:
        if values := ratios(samples, target):
            verdict = "reached" if target.reached(statistics.median(values)) else "MISSED"
            bound = f"≥ {target.least:g}" if target.least is not None else f"≤ {target.most:g}"
            lines.append(
                f"| {target.name} | {target.connections} | {bound} "
                f"| {spread(values, '{:.3g}'.format)} | {verdict} |"
            )
    pss = memory[SERVICE]["pss"]
    verdict = "reached" if pss <= MAX_PSS else "MISSED"
    lines.append(f"| memory (PSS), MiB | | ≤ {MAX_PSS:g} | {pss:.0f} | {verdict} |")
    lines += ["", "| server | PSS MiB | RSS MiB |", "|---|---|---|"]
    lines += [f"| {name} | {m['pss']:.0f} | {m['rss']:.0f} |" for name, m in memory.items()]
    if disturbed:
        lines += ["", "Disturbed, and left out:", ""]
        lines += [
            f"- round {s.round}, {s.server}, {s.connections} connections: {s.rate:,.0f} "
            f"requests/s, steal {s.steal:.1%}, other processes {s.foreign:.1%}"
            for s in disturbed
        ]
    return "\n".join(lines) + "\n"


def plot(samples: Sequence[Sample], file: Path) -> None:
    """Rate and p99 against connections, a line a server with the range of its rounds."""
    panels = (("rate", "requests a second", 1.0), ("p99", "p99 latency, ms", 1e3))

    def draw(axes: Any) -> None:
        for axis, (name, label, scale) in zip(axes, panels, strict=True):
            for server in dict.fromkeys(sample.server for sample in samples):
                points: dict[int, list[float]] = {}
                for s in samples:
                    if s.server == server and not s.disturbed:
                        points.setdefault(s.connections, []).append(scale * getattr(s, name))
                middle = {n: statistics.median(values) for n, values in sorted(points.items())}
                below = [middle[n] - min(points[n]) for n in middle]
                above = [max(points[n]) - middle[n] for n in middle]
                heights, errors = list(middle.values()), [below, above]
                axis.errorbar([*middle], heights, errors, marker="o", capsize=3, label=server)
            axis.set(xscale="log", yscale="log", xlabel="connections", ylabel=label)
            ticks = sorted({sample.connections for sample in samples})
            axis.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize="small")

    file.write_text(svg(draw))


def machine_facts() -> dict[str, Any]:
    """What the figures depend on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "when": time.strftime("%Y-%m-%d %H:%M %Z"),
        "processor": f"{psutil.cpu_count()} x {model}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "load average before": f"{os.getloadavg()[0]:.2f}",
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
    }


def options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=4, help="of a measurement")
    parser.add_argument("--warm-up", type=float, default=20, help="seconds for each server")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--model-store", type=Path, default=Path("model_store"))
    parser.add_argument("--out", type=Path, default=Path("artifacts/bench"))
    return parser.parse_args(arguments)


def run(settings: argparse.Namespace) -> tuple[list[Sample], dict[str, dict[str, float]]]:
    """All measurements, and the memory that each server had at their end."""
    rounds: Iterator[tuple[int, int]] = (
        (round_, connections)
        for round_ in range(1, settings.rounds + 1)
        for connections in settings.connections
    )
    samples = []
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, contextlib.ExitStack() as stack:
        all_servers = servers(settings.model_store, Path(scratch))
        for name, server in all_servers.items():
            print(f"starting: {name}", flush=True)
            stack.enter_context(server)
        for name, server in all_servers.items():
            # The JVM compiles what is hot in the first seconds under load.
            print(f"warming up: {name}", flush=True)
            load(server, 32, settings.warm_up / 2)
            load(server, 1, settings.warm_up / 2)
        for round_, connections in rounds:
            names = list(all_servers)
            for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
                sample = measure(name, all_servers, connections, round_, settings.seconds)
                samples.append(sample)
                print(
                    f"round {round_}, {connections:>3} connections, {name:<28}"
                    f"{sample.rate:>9,.0f} requests/s, p50 {sample.p50 * 1e3:.2f} ms, "
                    f"p99 {sample.p99 * 1e3:.2f} ms{', DISTURBED' if sample.disturbed else ''}",
                    flush=True,
                )
        memory = {name: server.memory() for name, server in all_servers.items()}
    return sorted(samples, key=lambda s: (list(all_servers).index(s.server), s.connections)), memory


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and leave report.md, results.json and plot.svg; 0, or 1 if it cannot."""
    settings = options(arguments)
    facts = machine_facts()
    try:
        if not shutil.which("wrk"):
            raise BenchError(
                "wrk is not installed: `apt-get install wrk`, or your system's package"
            )
        for name in ("mnist", "xor"):
            if not (settings.model_store / f"{name}.mar").is_file():
                raise BenchError(f"{settings.model_store} has no {name}.mar: run `make train`")
        samples, memory = run(settings)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    settings.out.mkdir(parents=True, exist_ok=True)
    text = report(samples, memory, facts)
    (settings.out / "report.md").write_text(text)
    document = {"machine": facts, "memory_mib": memory, "samples": [asdict(s) for s in samples]}
    (settings.out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    plot(samples, settings.out / "plot.svg")
    print(f"\n{text}\nreport.md, results.json and plot.svg are in {settings.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
