"""Traffic to pods: a Service in front of them, and digits at a steady rate."""

import contextlib
import gc
import itertools
import random
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import requests
from requests.adapters import HTTPAdapter

from loadtest.arrivals import schedule
from loadtest.digits import Digit
from tests.deploy.containers import Pod

PNG = {"Content-Type": "image/png"}
TOKEN = "of-the-tests"
CONNECTIONS = 64


def label(url: str, png: bytes, **headers: str) -> int:
    response = requests.post(
        f"{url}/predictions/mnist", data=png, headers=PNG | headers, timeout=60
    )
    assert response.status_code == 200, response.text
    return int(response.json()["predictions"][0]["label"])


def answered(pod: Pod) -> int:
    return round(pod.metric("inference_requests_total", model="mnist", code="200"))


class Service:
    """A Service: each new connection goes to a random endpoint and stays there.

    kube-proxy does this in the kernel. This forwards in threads, which takes some tenths of a
    millisecond more; where an endpoint refuses, the accepted connection is closed.

    Args:
        host, port: where it listens.

    Attributes:
        endpoints: addresses of pods, which a test may change; their port is the Service's.
        connections: open connections by endpoint.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.endpoints: Sequence[str] = ()
        self.connections: Counter[str] = Counter()
        self._counting = threading.Lock()

    def __enter__(self) -> Self:
        forward = self._forward

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                forward(self.request)

        self._server = _Server((self.host, self.port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _forward(self, client: socket.socket) -> None:
        if not (endpoints := self.endpoints):
            return
        endpoint = random.choice(endpoints)
        self._count(endpoint, 1)
        with (
            contextlib.suppress(OSError),
            # A pod that is gone does not refuse.
            socket.create_connection((endpoint, self.port), timeout=2) as pod,
        ):
            pod.settimeout(None)
            # A request in two parts would wait 40 ms for the acknowledgement of the first.
            pod.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answers = threading.Thread(target=_copy, args=[pod, client])
            answers.start()
            _copy(client, pod)
            answers.join()
        self._count(endpoint, -1)

    def _count(self, endpoint: str, change: int) -> None:
        with self._counting:
            self.connections[endpoint] += change


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 128


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@dataclass(frozen=True)
class Answer:
    """The outcome of a request.

    Attributes:
        sent: when it was due, by `time.perf_counter`.
        seconds: from then to the answer.
        problem: what was wrong with the answer; empty if nothing.
    """

    sent: float
    seconds: float
    problem: str


class Load:
    """Digits in an open loop: at a steady rate, however long answers take.

    It runs inside a `with` block; after that every request has ended.

    Args:
        url, headers: of each request.
        digits: in turn.
        rate: a second.

    Attributes:
        answers: the outcome of each request, once the load has ended.
    """

    def __init__(
        self, url: str, headers: dict[str, str], digits: Iterable[Digit], rate: float
    ) -> None:
        self._url, self._headers, self._rate = url, headers, rate
        self._digits = itertools.cycle(digits)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._send_all)
        self._futures: list[Future[Answer]] = []
        self.answers: list[Answer] = []

    def __enter__(self) -> Self:
        # A full collection over what the tests have loaded takes a fifth of a second.
        gc.collect()
        gc.freeze()
        self._session = requests.Session()
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=CONNECTIONS)
        self._session.mount("http://", adapter)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._session.close()
        gc.unfreeze()
        self.answers = [future.result() for future in self._futures]

    def _send_all(self) -> None:
        start = time.perf_counter()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            for intended in schedule("constant", self._rate, start, random.Random(1)):
                if self._stopping.wait(max(0.0, intended - time.perf_counter())):
                    return
                self._futures.append(pool.submit(self._ask, next(self._digits), intended))

    def _ask(self, digit: Digit, intended: float) -> Answer:
        problem = ""
        try:
            response = self._session.post(
                self._url, data=digit.png, headers=self._headers, timeout=60
            )
            if response.status_code != 200:
                problem = f"{response.status_code} {response.text}"
            elif (label := response.json()["predictions"][0]["label"]) != digit.label:
                problem = f"label {label}, not {digit.label}"
        except requests.RequestException as error:
            problem = repr(error)
        return Answer(intended, time.perf_counter() - intended, problem)
