"""This service and one peer after the other, in turns, in parts that can be run one by one.

A part starts a peer beside this service, measures both in turns and adds the results to a file of
JSON; a run goes on with the parts that the file lacks. Ratios are thus between measurements of the
same minute. A measurement that others disturbed is repeated up to twice.
"""

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import faults, measure, open_loop
from bench.errors import BenchError
from bench.peers.catalogue import PEERS, SERVICE, build
from bench.servers import SERVICE as SERVICE_NAME
from bench.servers import request_to, running
from loadtest.capacity import best
from loadtest.servers import Server, Service

CLOSED, OTHER_WORKERS, OPEN, FAULTS = "closed", "other workers", "open", "faults"
KINDS = (CLOSED, OTHER_WORKERS, OPEN, FAULTS)
_REPEATS = 2


@dataclass(frozen=True)
class Part:
    """What is measured in one go.

    Attributes:
        kind: `closed` loops, with the chosen number of workers or with the `other workers`; `open`
            loops; or `faults`.
        peer: key of `PEERS`, or `service`, whose faults alone are measured.
        round: from 1.
    """

    kind: str
    peer: str
    round: int


def parts(peers: Sequence[str], rounds: int, open_rounds: int) -> Iterator[Part]:
    """All parts, so that every peer has its first round before any has its second."""
    for round_ in range(1, max(rounds, open_rounds) + 1):
        for peer in peers:
            if round_ <= rounds:
                yield Part(CLOSED, peer, round_)
            if round_ <= open_rounds:
                yield Part(OPEN, peer, round_)
    yield from (Part(FAULTS, peer, 1) for peer in ("service", *peers))
    yield from (Part(OTHER_WORKERS, peer, 1) for peer in peers if PEERS[peer].environment)
    if "starlette-torchscript" in peers:
        yield Part(OTHER_WORKERS, "starlette-torchscript", 1)


class Results:
    """Parts and their results, in a file of JSON that grows by a line a part."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.document: dict[str, Any] = {"runs": [], "parts": []}
        if file.exists():
            self.document = json.loads(file.read_text())

    def has(self, part: Part) -> bool:
        """Whether the part was measured."""
        wanted = asdict(part).items()
        return any(wanted <= done.items() for done in self.document["parts"])

    def forget(self, parts: Sequence[Part]) -> None:
        """Drop what these parts have; and the runs, if nothing is left of them."""
        gone = [asdict(part).items() for part in parts]
        kept = [p for p in self.document["parts"] if not any(g <= p.items() for g in gone)]
        self.document = {"runs": self.document["runs"] if kept else [], "parts": kept}

    def begin(self, facts: dict[str, str]) -> None:
        """Note a run: machine, code and command."""
        self.document["runs"].append(facts)

    def add(self, part: Part, result: dict[str, Any]) -> None:
        """Keep a part, with the number of its run."""
        run = len(self.document["runs"]) - 1
        self.document["parts"].append(_rounded(asdict(part) | {"run": run} | result))
        self._file.parent.mkdir(parents=True, exist_ok=True)
        lists = (
            f' "{name}": [\n' + ",\n".join(f"  {json.dumps(each)}" for each in each_list) + "\n ]"
            for name, each_list in self.document.items()
        )
        self._file.write_text("{\n" + ",\n".join(lists) + "\n}\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def run(
    results: Results, todo: Sequence[Part], plan: measure.Plan, store: Path, until: float
) -> bool:
    """Measure parts until none is left or it is time to end.

    Args:
        results: get them.
        todo: in this order; those that were measured are left out.
        plan: how to measure.
        store: this service's archives.
        until: by `time.monotonic`; no part begins after it.

    Returns:
        Whether none is left.
    """
    left = [part for part in todo if not results.has(part)]
    beside = any(part.kind != FAULTS for part in left)
    service = Service(store)
    with contextlib.ExitStack() as stack:
        start = stack.enter_context(running(service)) if beside else 0.0
        if beside:
            _warm(service, plan)
        for part in left:
            if time.monotonic() > until:
                return False
            print(f"{part.kind}: {part.peer}, round {part.round}", flush=True)
            with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
                try:
                    result = _measure(part, service, plan, store, Path(scratch))
                except (BenchError, RuntimeError, OSError) as error:
                    print(f"{part.peer}: {error}", flush=True)
                    result = {"error": str(error)[-500:]}
            if part.kind == CLOSED and "start" in result:
                result["start"]["service"] = start
            results.add(part, result)
    return True


def _warm(server: Server, plan: measure.Plan) -> float:
    """Load a server until it is as fast as it gets; returns successful requests a second."""
    measure.load(server, 1, max(1, plan.warm_up // 2))
    return measure.load(server, 32, max(1, plan.warm_up // 2)).rate


def _measure(
    part: Part, service: Service, plan: measure.Plan, store: Path, scratch: Path
) -> dict[str, Any]:
    def start_peer() -> Server:
        if part.peer == "service":
            return Service(store)
        own = Path(tempfile.mkdtemp(dir=scratch))
        other = 3 - PEERS[part.peer].workers if part.kind == OTHER_WORKERS else None
        return build(part.peer, store, own, other)

    if part.kind == FAULTS:
        return {"faults": faults.measure(PEERS.get(part.peer, SERVICE), start_peer)}
    peer = start_peer()
    both: dict[str, Server] = {SERVICE_NAME: service, PEERS[part.peer].title: peer}
    with running(peer) as start:
        expected = {PEERS[part.peer].title: _warm(peer, plan)}
        if part.kind == OPEN:
            expected[SERVICE_NAME] = measure.load(service, 32, 1).rate
            return {"open": {name: _open(both[name], expected[name]) for name in both}}
        order = [*both] if part.round % 2 else [*reversed(both)]
        samples = [
            asdict(each)
            for connections in plan.connections
            for name in order
            for each in _undisturbed(name, both, connections, part.round, plan)
        ]
        memory = {name: server.memory()["pss"] for name, server in both.items()}
    return {"start": {"peer": start}, "memory": memory, "samples": samples}


def _open(server: Server, expected: float) -> dict[str, Any]:
    probes = open_loop.search(server.inference, request_to(server), expected, precision=0.06)
    held = best(probes)
    # The machine may have been so busy that nothing can be said of the server.
    is_known = held or not all(probe.generator_limited for probe in probes)
    rate = held.rate if held else 0.0 if is_known else None
    print(f"  {rate} requests/s hold {open_loop.OBJECTIVE}", flush=True)
    return {
        "rate": rate,
        "probes": [
            {
                "rate": p.rate,
                "p50": p.latency_ms["p50"],
                "p99": p.latency_ms["p99"],
                "why": p.reason,
            }
            for p in probes
        ],
    }


def _undisturbed(
    name: str, both: dict[str, Server], connections: int, round_: int, plan: measure.Plan
) -> Iterator[measure.Sample]:
    """Every measurement until one was not disturbed."""
    for _ in range(1 + _REPEATS):
        sample = measure.measure(name, both, connections, round_, plan)
        print(f"  {measure.line(sample)}", flush=True)
        yield sample
        if not sample.disturbed:
            return
