"""Measures servers in rounds."""

import contextlib
import os
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass

import psutil

from bench import wrk
from bench.errors import BenchError
from bench.servers import STOCK, request_to
from loadtest import server_side
from loadtest.servers import Server, Service

# Share of the machine's processor time during a measurement.
_MAX_STEAL = 0.02


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        connections: numbers of them, each measured in every round.
        rounds: how many.
        seconds: of a measurement.
        warm_up: seconds for each server, before the first round.
        max_foreign: share of the machine's processor time from which other processes disturb a
            measurement.
        may_fail: servers that may fail requests; the stock one's queue of 100 is too short for 128
            connections.
    """

    connections: list[int]
    rounds: int
    seconds: int
    warm_up: int
    max_foreign: float
    may_fail: Container[str] = (STOCK,)


@dataclass(frozen=True)
class Sample:
    """One measurement of one server.

    Attributes:
        rate: successful responses a second.
        failed: share of the requests that had none.
        p50, p90, p99, p999: latency in seconds.
        steal, foreign: shares of the machine's processor time that the hypervisor took, and
            processes other than the generator and the servers.
        disturbed: whether one of these was too large.
        batch: mean number of requests in a batch, if the server counts it.
        stages: microseconds a request spent in each stage of the worker, if the server counts them.
        cpu: processor seconds of the server for 1,000 responses.
    """

    server: str
    connections: int
    round: int
    rate: float
    failed: float
    p50: float
    p90: float
    p99: float
    p999: float
    steal: float
    foreign: float
    disturbed: bool
    batch: float | None
    stages: dict[str, float]
    cpu: float


@dataclass(frozen=True)
class Memory:
    """Memory of one server after a round, in MiB: `pss` counts shared pages once."""

    server: str
    round: int
    pss: float
    rss: float


def run(servers: Mapping[str, Server], plan: Plan) -> tuple[list[Sample], list[Memory]]:
    """Start all servers, and load one at a time, in rounds.

    Raises:
        BenchError: a server failed requests that it should have answered.
    """
    samples, memory = [], []
    with contextlib.ExitStack() as stack:
        for name, server in servers.items():
            print(f"starting: {name}", flush=True)
            stack.enter_context(server)
        for name, server in servers.items():
            # The JVM compiles what is hot in the first seconds under load.
            print(f"warming up: {name}", flush=True)
            for few_or_many in (32, 1):
                load(server, few_or_many, max(1, plan.warm_up // 2))
        for round_ in range(1, plan.rounds + 1):
            names = [*servers]
            first = round_ % len(names)
            for count in plan.connections:
                for name in names[first:] + names[:first]:
                    sample = measure(name, servers, count, round_, plan)
                    samples.append(sample)
                    print(line(sample), flush=True)
            memory += [Memory(name, round_, **server.memory()) for name, server in servers.items()]
    order = [*servers]
    return sorted(samples, key=lambda s: (order.index(s.server), s.connections)), memory


def measure(
    name: str,
    servers: Mapping[str, Server],
    connections: int,
    round_: int,
    plan: Plan,
) -> Sample:
    """Load one server, and watch what else the machine does meanwhile.

    Args:
        name: of the server.
        servers: all that run.
        connections: how many.
        round_: number of the round.
        plan: how to measure.

    Raises:
        BenchError: it failed requests that it should have answered.
    """
    server = servers[name]

    def own() -> float:
        children = os.times()
        mine = children.user + children.system + children.children_user + children.children_system
        return mine + sum(each.cpu_seconds() for each in servers.values())

    own_before, machine_before, before = own(), psutil.cpu_times(), _scrape(server)
    cpu = server.cpu_seconds()
    started = time.monotonic()
    load_ = load(server, connections, plan.seconds)
    capacity = (time.monotonic() - started) * (psutil.cpu_count() or 1)
    machine, own_after, after = psutil.cpu_times(), own(), _scrape(server)
    cpu = server.cpu_seconds() - cpu
    busy = sum(machine) - sum(machine_before) - (machine.idle - machine_before.idle)
    busy -= machine.iowait - machine_before.iowait
    stolen = machine.steal - machine_before.steal
    steal = stolen / capacity
    foreign = max(0.0, (busy - stolen - (own_after - own_before)) / capacity)
    if load_.failed and name not in plan.may_fail:
        raise BenchError(
            f"{name}, {connections} connections: {load_.error_responses} of {load_.responses} "
            f"responses were errors, {load_.broken} connections broke"
        )
    side = server_side.difference(before, after).get("mnist", server_side.ModelSide())
    return Sample(
        name,
        connections,
        round_,
        load_.rate,
        load_.failed,
        load_.p50,
        load_.p90,
        load_.p99,
        load_.p999,
        steal=steal,
        foreign=foreign,
        disturbed=steal > _MAX_STEAL or foreign > plan.max_foreign,
        batch=side.batch or None,
        stages={
            stage: 1e3 * side.milliseconds[stage] / side.batch
            for stage in ("parse", "forward", "respond")
            if side.batch
        },
        cpu=1e3 * cpu / load_.responses,
    )


def load(server: Server, connections: int, seconds: int) -> wrk.Load:
    """Load a server with what it takes."""
    return wrk.run(server.inference, request_to(server), connections, seconds)


def _scrape(server: Server) -> dict[server_side.Sample, float]:
    """The server's counters; empty for one that is not this service."""
    if not isinstance(server, Service):
        return {}
    return server_side.scrape(f"{server.telemetry}/metrics")


def line(sample: Sample) -> str:
    """A measurement in a line."""
    return (
        f"round {sample.round}, {sample.connections:>3} connections, {sample.server:<28}"
        f"{sample.rate:>9,.0f} requests/s, p50 {sample.p50 * 1e3:.2f} ms, "
        f"p99 {sample.p99 * 1e3:.2f} ms{', DISTURBED' if sample.disturbed else ''}"
    )
