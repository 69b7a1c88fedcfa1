"""How the service's figures grow with workers, with images in a request, and with models.

    python -m bench.growth

Each server runs alone. Prints Markdown; `bench/README.md` has what it said, and what follows.
"""

import argparse
import json
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import machine, measure, wrk
from bench.errors import BenchError
from bench.report import table
from bench.servers import require_archives, running
from bench.wrk import Request
from loadtest.options import count
from loadtest.servers import ROOT, Service

_WORKERS = (1, 2, 4)
_CONNECTIONS = (1, 32, 128)
_IMAGES = (1, 8, 64, 256, 1024)
_IMAGE_CONNECTIONS = 4
_MODELS = (1, 4, 16)
_PIXELS = 28 * 28


def images(number: int) -> Request:
    """Blank images as a binary tensor of the Open Inference Protocol."""
    size = {"parameters": {"binary_data_size": number * _PIXELS}}
    tensor = {"name": "images", "shape": [number, 28, 28], "datatype": "UINT8", **size}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return Request("/v2/models/mnist/infer", head + bytes(number * _PIXELS), headers)


def versions(store: Path, number: int, directory: Path) -> Path:
    """A store with so many versions of mnist."""
    directory.mkdir()
    with zipfile.ZipFile(store / "mnist.mar") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    for version in (f"{n}.0" for n in range(1, number + 1)):
        with zipfile.ZipFile(directory / f"mnist-{version}.mar", "w") as copy:
            for name, content in contents.items():
                if name == "MAR-INF/MANIFEST.json":
                    document = json.loads(content)
                    document["model"]["modelVersion"] = version
                elif name == "model.json":
                    document = json.loads(content) | {"version": version}
                else:
                    copy.writestr(name, content)
                    continue
                copy.writestr(name, json.dumps(document))
    return directory


@contextmanager
def started(store: Path, warm_up: int, **environment: str) -> Iterator[tuple[Service, float]]:
    """A server that is warm, and the seconds from its start to its first answer."""
    server = Service(store, **environment)
    with running(server) as seconds:
        for connections in (32, 1):
            measure.load(server, connections, max(1, warm_up // 2))
        yield server, seconds


def loaded(server: Service, request: Request, connections: int, seconds: int) -> tuple[float, ...]:
    """Requests a second, p50 and p99 in ms, and microseconds of processor time for a request.

    Raises:
        BenchError: a request failed.
    """
    before = server.cpu_seconds()
    load = wrk.run(server.inference, request, connections, seconds)
    used = server.cpu_seconds() - before
    if load.failed:
        raise BenchError(f"{load.error_responses + load.broken} requests failed")
    return load.rate, 1e3 * load.p50, 1e3 * load.p99, 1e6 * used / load.responses


def by_workers(store: Path, seconds: int, warm_up: int) -> str:
    """A table of throughput by workers of each model."""
    rows = []
    for workers in _WORKERS:
        number = str(workers)
        with started(store, warm_up, TS_DEFAULT_WORKERS_PER_MODEL=number) as (server, _):
            figures = [loaded(server, Request(), n, seconds) for n in _CONNECTIONS]
            rates = [f"{rate:,.0f}" for rate, *_ in figures]
            rows.append([number, *rates, *_of_many(figures[1]), f"{server.memory()['pss']:,.0f}"])
    head = ["workers", *(f"requests/s, {n}" for n in _CONNECTIONS), "p50 ms, 32", "p99", "CPU µs"]
    return table([*head, "PSS MiB"], rows)


def by_images(store: Path, seconds: int, warm_up: int) -> str:
    """A table of throughput by images in a request."""
    rows = []
    with started(store, warm_up) as (server, _):
        for number in _IMAGES:
            request = images(number)
            rate, p50, p99, cpu = loaded(server, request, _IMAGE_CONNECTIONS, seconds)
            each = f"{cpu / number:.1f}"
            rows.append([str(number), f"{rate * number:,.0f}", f"{p50:.2f}", f"{p99:.2f}", each])
    return table(["images a request", "images/s", "p50 ms", "p99 ms", "CPU µs an image"], rows)


def by_models(store: Path, seconds: int, warm_up: int) -> str:
    """A table of memory and of the time to start, by archives of mnist, with a worker each."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="growth-") as scratch:
        for number in _MODELS:
            many = versions(store, number, Path(scratch) / str(number))
            one = {"TS_DEFAULT_WORKERS_PER_MODEL": "1"}
            with started(many, warm_up, **one) as (server, until_answer):
                rate, *_ = loaded(server, Request(), 32, seconds)
                memory = f"{server.memory()['pss']:,.0f}"
                rows.append([str(number), f"{until_answer:.1f}", memory, f"{rate:,.0f}"])
    return table(["models", "s to the first answer", "PSS MiB", "requests/s to one, 32"], rows)


def _of_many(figures: Sequence[float]) -> list[str]:
    _, p50, p99, cpu = figures
    return [f"{p50:.2f}", f"{p99:.2f}", f"{cpu:.0f}"]


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 0, or 1 if it cannot."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--seconds", type=count, default=4, metavar="N", help="of a measurement")
    parser.add_argument("--warm-up", type=count, default=12, metavar="N", help="of a server")
    parser.add_argument("--model-store", type=Path, default=ROOT / "model_store", metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        require_archives(options.model_store)
        wrk.require()
        facts = machine.facts(" ".join(["python -m bench.growth", *sys.argv[1:]]))
        print(", ".join(facts.values()))
        for part in (by_workers, by_images, by_models):
            print(f"\n{part(options.model_store, options.seconds, options.warm_up)}", flush=True)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
