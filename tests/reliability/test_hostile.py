"""A hundred thousand hostile requests beside a neighbour, who is answered rightly throughout.

Their seeds are fixed: a failure names the request by seed and index, keeps its bytes under
`artifacts/reliability`, and `python -m tests.reliability.hostile SEED INDEX` makes it again.
"""

import contextlib
import json
import multiprocessing
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Self

import hypothesis
import psutil
import pytest
import requests
from hypothesis import strategies as st

from loadtest.servers import wait_until
from loadtest.traffic import Load, open_loop, percentile
from tests.reliability import hostile
from tests.reliability.flood import Tally, flood
from tests.reliability.record import Section, scaled
from tests.reliability.wire import port_of
from tests.serving import ServerProcess, serving

SEED = 20261126
COUNT = scaled(3_000, 100_000)
# A second; what two shared cores answer beside the generator and the neighbour, with room.
RATE = 400.0
NEIGHBOUR_RATE = 20.0
CALM_SECONDS = scaled(8.0, 40.0)
XOR = b'{"instances": [[0, 1]]}'
# Of memory, against that before. The JVM still compiles during the short version.
MAX_GROWTH = scaled(0.3, 0.1)
ROLES = ("java", "haproxy", "worker")
SECTION = Section(
    50,
    "Hostile input",
    "Requests made from seeds: pictures of every format with bytes changed, polyglots, bombs, "
    "deep and huge JSON, numbers out of range, wrong encodings, forms, chunks, binary tensors "
    "with wrong lengths, paths that lead out, floods of headers, and what is not HTTP at all. "
    "Each has exactly one answer, which is right or names its reason; none is a 5xx but the 503 "
    "that puts off a request that takes long while there are others. *Neighbour* is a client that "
    "sends digits and pairs at 20 a second and compares every answer with the one that it got "
    "before. Memory (RSS) is compared with that after a first flood of every kind.",
)


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[ServerProcess]:
    with serving(store, TS_DEFAULT_WORKERS_PER_MODEL="2") as running:
        yield running


def memory(server: ServerProcess) -> dict[str, float]:
    """MiB of each role's processes together."""
    total = dict.fromkeys(ROLES, 0.0)
    for process in server.family():
        with contextlib.suppress(psutil.NoSuchProcess):
            is_worker = "model_service_worker" in " ".join(process.cmdline())
            role = "worker" if is_worker else process.name()
            if role in total:
                total[role] += process.memory_info().rss / 2**20
    return total


class Neighbour:
    """Sends digits and pairs at a steady rate for as long as a `with` block lasts.

    Attributes:
        outcomes: of all its requests.
    """

    def __init__(self, server: ServerProcess, seconds: float = 1e6) -> None:
        self._bodies = {server.url("mnist"): hostile.SEVEN, server.url("xor"): XOR}
        self._expected = {
            url: requests.post(url, data=body, timeout=60).json()
            for url, body in self._bodies.items()
        }
        self._loads = {
            url: Load(open_loop(url, body, NEIGHBOUR_RATE / 2, seconds, keep_bodies=True))
            for url, body in self._bodies.items()
        }

    def __enter__(self) -> Self:
        for load in self._loads.values():
            load.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for load in self._loads.values():
            load.__exit__()
        self.outcomes = [outcome for load in self._loads.values() for outcome in load.outcomes]

    def wait(self) -> None:
        """Until its seconds are over."""
        for load in self._loads.values():
            load.wait()

    def check(self) -> None:
        """Every request was answered as before."""
        assert self.outcomes
        for url, load in self._loads.items():
            assert set(load.statuses) == {200}
            (want,) = self._expected[url]["predictions"]
            for outcome in load.outcomes:
                (got,) = json.loads(outcome.body)["predictions"]
                assert got["probabilities"] == pytest.approx(want["probabilities"], abs=1e-6)


class Attacker:
    """Sends floods from a process of its own, whose work does not delay the neighbour's clock."""

    def __init__(self, server: ServerProcess) -> None:
        self._port = port_of(server.inference)
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    def flood(self, seed: int, count: int) -> Tally:
        return self._pool.submit(flood, self._port, seed, count, RATE).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def settle(server: ServerProcess, attacker: Attacker) -> dict[str, float]:
    """Flood until memory grows no more, as the JVM's does while it compiles; what it is then."""
    for bomb in hostile.bombs():
        assert requests.post(server.url("mnist"), data=bomb, timeout=60).status_code < 500
    before = memory(server)
    for number in range(1, scaled(3, 12)):
        assert attacker.flood(SEED - number, scaled(1_000, 4_000)).failures == []
        after = memory(server)
        if all(after[role] < 1.03 * before[role] for role in ROLES):
            break
        before = after
    return after


def starts(server: ServerProcess) -> list[float]:
    return [
        server.metric(f"serving_{what}_starts_total") for what in ("worker", "torchserve", "door")
    ]


@pytest.fixture
def attacker(server: ServerProcess) -> Iterator[Attacker]:
    with Attacker(server) as attacker:
        yield attacker


def test_a_flood_harms_nobody(server: ServerProcess, attacker: Attacker) -> None:
    before, started = settle(server, attacker), starts(server)
    workers = {process.pid for process in server.family()}
    with Neighbour(server, CALM_SECONDS) as calm:
        calm.wait()
    begin = time.monotonic()
    with Neighbour(server) as neighbour, SlowClients(port_of(server.inference)) as slow:
        tally = attacker.flood(SEED, COUNT)
    seconds = time.monotonic() - begin
    assert tally.failures == []
    assert sum(tally.sent.values()) == COUNT
    assert set(tally.sent) == set(hostile.kinds())
    assert slow.answers
    calm.check()
    neighbour.check()
    assert starts(server) == started
    assert {process.pid for process in server.family()} == workers
    assert server.probe("/readyz")[0] == 200
    # Refusals for load are told apart: those of requests that take long.
    refused = {reason: count for reason, count in tally.refused.items() if reason[0] == "5"}
    assert set(refused) <= {"503 ServiceUnavailableException"}
    assert sum(refused.values()) < COUNT / 100

    def grown() -> dict[str, float]:
        after = memory(server)
        return {role: after[role] / before[role] - 1 for role in ROLES}

    with contextlib.suppress(TimeoutError):
        wait_until(lambda: max(grown().values()) <= MAX_GROWTH, 30)
    growth = grown()
    calm_p99, p99 = (percentile(each.outcomes, 0.99) for each in (calm, neighbour))
    SECTION.record(
        {
            "what": "all kinds",
            "sent": COUNT,
            "requests/s": round(COUNT / seconds),
            "answered": tally.answered,
            "refused": sum(tally.refused.values()),
            "failed": 0,
            "workers lost": 0,
            "neighbour's requests": len(neighbour.outcomes),
            "wrong": 0,
            "p99 calm, ms": round(1e3 * calm_p99, 1),
            "p99, ms": round(1e3 * p99, 1),
            "slow clients cut off": slow.answers,
            **{f"{role}, growth %": round(100 * growth[role], 1) for role in ROLES},
        },
        notes="; ".join(f"{count:,} {reason}" for reason, count in tally.refused.most_common()),
    )
    for kind, count in sorted(tally.sent.items()):
        SECTION.record({"what": kind, "sent": count, "failed": 0})
    assert max(growth.values()) <= MAX_GROWTH, growth


class SlowClients:
    """Clients that send headers, bodies or read answers so slowly that the door gives them up.

    In a `with` block they go on: whoever is cut off begins again.

    Attributes:
        answers: how often one was cut off, with an answer that says so or without.
    """

    def __init__(self, port: int, count: int = 10) -> None:
        self._port = port
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(drip,))
            for drip in (self._head, self._body, self._nothing)
            for _ in range(count)
        ]
        self.answers = 0

    def _run(self, drip: Any) -> None:
        while not self._over.is_set():
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self._port), timeout=1) as client,
            ):
                for part in drip():
                    if self._over.wait(0.5):
                        return
                    client.sendall(part)
                    with contextlib.suppress(TimeoutError):
                        answer = client.recv(1 << 16)
                        assert not answer or b" 408 " in answer
                        break
            self.answers += 1

    @staticmethod
    def _head() -> Iterator[bytes]:
        yield b"POST /predictions/xor HTTP/1.1\r\nHost: a\r\n"
        while True:
            yield b"X: y\r\n"

    @staticmethod
    def _body() -> Iterator[bytes]:
        yield b"POST /predictions/xor HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n"
        while True:
            yield b" "

    @staticmethod
    def _nothing() -> Iterator[bytes]:
        while True:
            yield b""

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


# --- By hypothesis, which makes a failing document small.

NUMBERS = st.one_of(st.integers(), st.floats(), st.integers(0, 255), st.sampled_from([0, 1]))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=20))
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)
PAIRS = st.lists(st.one_of(st.lists(NUMBERS, min_size=2, max_size=2), ANYTHING), max_size=3)
TENSOR = st.fixed_dictionaries(
    {
        "name": st.one_of(st.just("input"), ANYTHING),
        "shape": st.one_of(st.just([1, 2]), ANYTHING),
        "datatype": st.one_of(st.sampled_from(["FP32", "UINT8"]), ANYTHING),
        "data": st.one_of(st.lists(NUMBERS, min_size=2, max_size=2), ANYTHING),
    },
    optional={"parameters": ANYTHING},
)
DOCUMENTS = st.one_of(
    st.fixed_dictionaries({"instances": st.one_of(PAIRS, ANYTHING)}),
    st.fixed_dictionaries(
        {"inputs": st.one_of(st.lists(TENSOR, max_size=2), ANYTHING)},
        optional={"id": ANYTHING, "outputs": ANYTHING, "parameters": ANYTHING},
    ),
    ANYTHING,
)
PATHS = st.sampled_from(
    ["/predictions/xor", "/v1/models/xor:predict", "/v2/models/xor/infer", "/explanations/xor"]
)


def test_whatever_document_comes(server: ServerProcess) -> None:
    examples = scaled(300, 5_000)

    @hypothesis.settings(max_examples=examples, derandomize=True, deadline=None, database=None)
    @hypothesis.given(PATHS, DOCUMENTS)
    def ask(path: str, document: Any) -> None:
        body = json.dumps(document).encode()
        response = session.post(server.inference + path, data=body, timeout=60)
        answer = response.json()
        assert response.status_code in (200, 400, 413), response.text
        if response.status_code != 200:
            assert answer["code"] == response.status_code
            assert answer["error" if path.startswith("/v2") else "message"]

    with requests.Session() as session:
        ask()
    SECTION.record({"what": "documents by hypothesis", "sent": examples, "failed": 0})
