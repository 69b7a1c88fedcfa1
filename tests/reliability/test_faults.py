"""Every process is killed, and is stopped for a while, under load: what becomes of requests."""

import contextlib
import json
import os
import resource
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests

from loadtest.servers import wait_until
from loadtest.traffic import LOST, REFUSED, Background, Load, Outcome, keep_alive, of_status
from tests.images import dearest_png
from tests.reliability.processes import named, workers
from tests.reliability.record import Section, scaled
from tests.serving import ROOT, ServerProcess, serving

SEVEN = (ROOT / "samples" / "seven.png").read_bytes()
XOR = b'{"instances": [[0, 1]]}'
USERS = {"mnist": 8, "xor": 4}
WORKERS = {"mnist": 2, "xor": 1}
ROUNDS = int(os.environ.get("FAULT_ROUNDS", scaled(1, 20)))
STOPPED_SECONDS = 0.5
LATE_SECONDS = 1.0
POLL_SECONDS = 0.05
# A start takes 5 s on two cores of its own, and took 51 s beside ten other jobs.
PATIENCE_SECONDS = 300
# Less than the pixels of the largest picture, and enough for small requests.
SPARE_BYTES = 4 << 20
SECTION = Section(
    10,
    "Kills and stops under load",
    f"""Eight clients of mnist and four of xor each send a small request 20 ms after the answer to
the one before, over keep-alive connections, while processes are killed (SIGKILL), or stopped for
{STOPPED_SECONDS:g} s (SIGSTOP, SIGCONT), each fault in turn. Columns are sums over all times and of
the models that the fault hits, unless they say otherwise. A client sends without a look at whether
its connection is still open, so of a killed front door each of the twelve loses a request, whether
or not it was under way. *Late* is an answer that took over {LATE_SECONDS:g} s. *No connection*
counts attempts to connect, repeated each 10 ms: no request was sent. *Full strength* is when all
processes run and `/readyz` says that all workers are ready, from the kill on, or from the end of
the stop. *Untrue* is for how long `/readyz`, polled 20 times a second, said that a model is ready
of which no request under way was answered 200 within {LATE_SECONDS:g} s: the longest of all times.
When the server process is killed, the test starts it again, as a supervisor would. *The other
model* counts what became of its requests while this one's workers were hit. `FAULT_ROUNDS` sets the
number of times.""",
)


@dataclass(frozen=True)
class Fault:
    """What is done to which processes.

    Attributes:
        name: as the report has it.
        victims: the processes.
        how: a signal.
        hits: models whose requests it may touch.
        lost: requests that may be lost each time at most: those under way in what was killed.
    """

    name: str
    victims: Callable[[ServerProcess], list[psutil.Process]]
    how: signal.Signals
    hits: tuple[str, ...]
    lost: int


def server_process(server: ServerProcess) -> list[psutil.Process]:
    return [psutil.Process(server.process.pid)]


BOTH = ("mnist", "xor")
ALL = sum(USERS.values())
STOP, KILL = signal.SIGSTOP, signal.SIGKILL
FAULTS = {
    "stopped": [
        Fault("a worker stopped", lambda s: workers(s, "mnist")[:1], STOP, ("mnist",), 0),
        Fault("all workers of a model stopped", lambda s: workers(s, "mnist"), STOP, ("mnist",), 0),
        Fault("the JVM stopped", named("java"), STOP, BOTH, 0),
        Fault("the front door stopped", named("haproxy"), STOP, BOTH, 0),
        Fault("the server process stopped", server_process, STOP, (), 0),
    ],
    "workers killed": [
        Fault("a worker killed", lambda s: workers(s, "mnist")[:1], KILL, ("mnist",), 0),
        Fault("all workers of a model killed", lambda s: workers(s, "mnist"), KILL, ("mnist",), 0),
    ],
    # The server that is started after the last has a clean slate, and so starts the next two again
    # at once.
    "others killed": [
        Fault("the front door killed", named("haproxy"), KILL, BOTH, ALL),
        Fault("the JVM killed", named("java"), KILL, BOTH, ALL),
        Fault("the server process killed", server_process, KILL, BOTH, ALL),
    ],
}


@dataclass(frozen=True)
class Poll:
    """An answer of `/readyz`: when it was asked for, and the models that were said to be ready."""

    time: float
    ready: frozenset[str]
    workers: dict[str, int]
    is_ready: bool


class Readiness(Background):
    """Polls `/readyz`, in a `with` block."""

    def __init__(self, server: ServerProcess) -> None:
        self._url = f"{server.telemetry}/readyz"
        super().__init__()
        self.polls: list[Poll] = []

    def _run(self) -> None:
        session = requests.Session()
        while not self._over.wait(POLL_SECONDS):
            now = time.monotonic()
            try:
                answer = session.get(self._url, timeout=5)
                models = answer.json()["models"]
            except requests.RequestException:
                self.polls.append(Poll(now, frozenset(), {}, is_ready=False))
                session = requests.Session()
                continue
            # What a balancer sees is the status; each model's own is that of the protocol's path.
            ready = {name for name, state in models.items() if state["ready"]}
            if answer.status_code != 200 and len(ready) == len(models):
                ready = set()
            counts = {name: state["workers"] for name, state in models.items()}
            self.polls.append(Poll(now, frozenset(ready), counts, answer.status_code == 200))


def untrue_seconds(polls: Sequence[Poll], outcomes: Sequence[Outcome], model: str) -> float:
    """For how long in a row a model was said to be ready of which nothing was answered."""
    sent = np.array([o.sent for o in outcomes])
    ends = np.array([o.sent + o.seconds for o in outcomes])
    good = np.array([o.status == 200 and o.seconds <= LATE_SECONDS for o in outcomes])
    longest, since = 0.0, None
    for poll in polls:
        # Under way when it was asked for, or sent right after.
        near = (sent <= poll.time + POLL_SECONDS) & (ends >= poll.time)
        if model in poll.ready and near.any() and not (near & good).any():
            since = poll.time if since is None else since
            longest = max(longest, poll.time + POLL_SECONDS - since)
        else:
            since = None
    return longest


@dataclass
class Tally:
    """What a fault did, over all times."""

    outcomes: list[Outcome] = field(default_factory=list)
    others: list[Outcome] = field(default_factory=list)
    most_lost: int = 0
    recovery: list[float] = field(default_factory=list)
    untrue: list[float] = field(default_factory=list)


def counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    late = [o for o in of_status(outcomes, 200) if o.seconds > LATE_SECONDS]
    return {
        "sent": len([*of_status(outcomes, 200, 503, 504, LOST)]),
        "lost": len([*of_status(outcomes, LOST)]),
        "refused": len([*of_status(outcomes, 503, 504)]),
        "late": len(late),
        "no connection": len([*of_status(outcomes, REFUSED)]),
    }


def slowest(outcomes: Sequence[Outcome]) -> float:
    return max(o.seconds for o in of_status(outcomes, 200))


def hurt(server: ServerProcess, fault: Fault) -> float:
    """Do it, and wait for full strength.

    Returns:
        Seconds to full strength.
    """
    victims = fault.victims(server)
    pids = {victim.pid for victim in victims}
    assert victims, fault.name
    begin = time.monotonic()
    for victim in victims:
        victim.send_signal(fault.how)
    if fault.how == STOP:
        time.sleep(STOPPED_SECONDS)
        begin = time.monotonic()
        for victim in victims:
            victim.resume()
    elif fault.victims is server_process:
        server.process.wait()
        server.start()

    def is_whole() -> bool:
        now = {p.pid for p in fault.victims(server)}
        if fault.how == KILL and (pids & now or not now):
            return False
        status, body = server.probe("/readyz")
        if status != 200:
            return False
        seen = {name: state["workers"] for name, state in json.loads(body)["models"].items()}
        alive = {model: len(workers(server, model)) for model in WORKERS}
        return seen == alive == WORKERS

    wait_until(is_whole, PATIENCE_SECONDS)
    return time.monotonic() - begin


@pytest.fixture
def server(store: Path) -> Iterator[ServerProcess]:
    with serving(store, TS_DEFAULT_WORKERS_PER_MODEL="2") as running:
        yield running


def once(server: ServerProcess, fault: Fault, tally: Tally) -> None:
    """One fault under load, and what it did."""
    with contextlib.ExitStack() as stack:
        loads = {
            model: stack.enter_context(
                Load(*[keep_alive(server.url(model), [body], idle=0.02) for _ in range(count)])
            )
            for (model, count), body in zip(USERS.items(), (SEVEN, XOR), strict=True)
        }
        readiness = stack.enter_context(Readiness(server))
        wait_until(lambda: all(load.statuses[200] > 50 for load in loads.values()))
        tally.recovery.append(hurt(server, fault))
        before = {model: load.statuses[200] for model, load in loads.items()}
        wait_until(
            lambda: all(loads[model].statuses[200] > before[model] + 50 for model in loads),
            PATIENCE_SECONDS,
        )
    for model, load in loads.items():
        (tally.outcomes if model in fault.hits else tally.others).extend(load.outcomes)
        tally.most_lost = max(tally.most_lost, load.statuses[LOST])
        tally.untrue.append(untrue_seconds(readiness.polls, load.outcomes, model))


def note(fault: Fault, tally: Tally) -> None:
    other = counts(tally.others)
    SECTION.record(
        {
            "fault": fault.name,
            "times": len(tally.recovery),
            **counts(tally.outcomes or tally.others),
            "slowest answer s": slowest(tally.outcomes or tally.others),
            "full strength, median s": statistics.median(tally.recovery),
            "longest s": max(tally.recovery),
            "untrue, longest s": max(tally.untrue),
            "the other model": "hit, too"
            if not tally.others
            else f"{other['sent']:,} sent, {sum(other.values()) - other['sent']} not in time",
        }
    )


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_every_process_is_killed_and_stopped(server: ServerProcess, faults: list[Fault]) -> None:
    shared = set(Path("/dev/shm").iterdir())
    tallies = {fault.name: Tally() for fault in faults}
    for _ in range(ROUNDS):
        for fault in faults:
            once(server, fault, tallies[fault.name])
            note(fault, tallies[fault.name])
    for fault in faults:
        tally = tallies[fault.name]
        print(fault.name, [o for o in tally.outcomes if o.status == LOST][:3])
        assert tally.most_lost <= fault.lost, fault.name
        assert {o.status for o in tally.others} <= {200}, fault.name
        assert {o.status for o in tally.outcomes} <= {200, 503, 504, LOST, REFUSED}, fault.name
    # Nothing is left of whoever was killed but the directory of the server that runs.
    wait_until(lambda: len(named("java")(server)) == len(named("haproxy")(server)) == 1)
    assert len([*server.temporary.glob("serve-*")]) == 1
    assert set(Path("/dev/shm").iterdir()) <= shared
    server.process.kill()
    wait_until(lambda: not server.family())


def test_workers_without_memory(server: ServerProcess) -> None:
    """The address space of both workers is full: what needs memory fails alone, by its name."""
    dear = dearest_png()
    answers: Counter[int] = Counter()
    with Load(*[keep_alive(server.url("mnist"), [SEVEN], idle=0.02) for _ in range(8)]) as load:
        for _ in range(ROUNDS):
            victims = workers(server, "mnist")
            assert len(victims) == WORKERS["mnist"]
            for victim in victims:
                used = victim.memory_info().vms + SPARE_BYTES
                victim.rlimit(psutil.RLIMIT_AS, (used, resource.RLIM_INFINITY))
            for _ in victims:
                response = requests.post(server.url("mnist"), data=dear, timeout=60)
                answers[response.status_code] += 1
                if response.status_code == 507:
                    message = response.json()["message"]
                    assert message == "the request does not fit into memory"
            for victim in victims:
                victim.rlimit(psutil.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

            def is_answered() -> bool:
                response = requests.post(server.url("mnist"), data=dear, timeout=60)
                return response.status_code == 200

            # 503 for a while: it has spent its workers' share of time on dear requests.
            wait_until(is_answered, PATIENCE_SECONDS)
            assert {each.pid for each in workers(server, "mnist")} == {v.pid for v in victims}
    hit = counts(load.outcomes)
    SECTION.record(
        {
            "fault": "memory of all workers of a model exhausted",
            "times": ROUNDS,
            **hit,
            "slowest answer s": slowest(load.outcomes),
        },
        f"{answers[507]} of {answers.total()} images of 4,096 x 4,096 pixels got 507, "
        f"{answers[503]} were put off; no worker was lost",
    )
    assert set(load.statuses) == {200}
    assert set(answers) <= {507, 503}
    assert answers[507]
