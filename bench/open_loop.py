"""The highest rate of Poisson arrivals at which a server answers 99 of 100 requests in time.

A generator of its own, as it needs a tenth of Locust's processor time for a request: generator and
servers share the machine. Requests that come while all connections are in use wait for one, and
their latency counts from when they were to be sent, as every other's does.
"""

import contextlib
import random
import select
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

from bench.wrk import Request
from loadtest.arrivals import schedule
from loadtest.capacity import Objective, Probe, Search, find

OBJECTIVE = Objective(percent=99, milliseconds=25)
_CONNECTIONS = 256
_SECONDS = 3.0
# Fewer requests would say little about one of 100.
_MIN_REQUESTS = 500
_MAX_SECONDS = 10.0
# How long answers are awaited after the last request.
_DRAIN_SECONDS = 2.0
# Share of the requests that the generator may send late, by so many seconds.
_LATE, _LATE_SHARE = 0.005, 0.02


@dataclass
class _Connection:
    socket: socket.socket
    due: float = 0.0
    received: bytearray = field(default_factory=bytearray)


class Generator:
    """Sends one request again and again over kept connections.

    Args:
        server: URL without a path.
        request: to send.
    """

    def __init__(self, server: str, request: Request) -> None:
        parts = urlsplit(server)
        self._address = (parts.hostname, parts.port)
        headers = {"Host": "localhost", **request.headers, "Content-Length": len(request.body)}
        lines = [f"POST {request.path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        self._message = ("\r\n".join(lines) + "\r\n\r\n").encode() + request.body

    def run(self, rate: float, seconds: float, seed: int) -> tuple[list[float], list[float], int]:
        """Send Poisson arrivals.

        Returns:
            Latencies of the answers with status 200, and by how much requests were sent late that
            had a connection, both in seconds; and how many requests had no such answer.
        """
        self._latencies: list[float] = []
        lags: list[float] = []
        self._failed = 0
        self._epoll = select.epoll()
        self._busy: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        try:
            self._idle = [_Connection(self._connect()) for _ in range(_CONNECTIONS)]
            start = time.perf_counter()
            arrivals = schedule("poisson", rate, start, random.Random(seed))  # noqa: S311
            end = start + seconds
            due = next(arrivals)
            waiting: deque[float] = deque()
            while (now := time.perf_counter()) < end + _DRAIN_SECONDS:
                while due <= now and due < end:
                    waiting.append(due)
                    if self._idle:
                        lags.append(now - due)
                        self._send(waiting.popleft())
                    due = next(arrivals)
                while waiting and self._idle:
                    self._send(waiting.popleft())
                if due >= end and not self._busy and not waiting:
                    break
                # epoll itself waits in whole milliseconds.
                patience = max(0.0, min(due, end) - now) if now < end else 0.01
                select.select([self._epoll.fileno()], [], [], patience)
                for descriptor, _ in self._epoll.poll(0):
                    if connection := self._busy.get(descriptor):
                        self._receive(connection)
                    else:
                        self._closed(descriptor)
            return self._latencies, lags, self._failed + len(self._busy) + len(waiting)
        finally:
            for connection in (*self._busy.values(), *self._idle):
                connection.socket.close()
            self._epoll.close()

    def _connect(self) -> socket.socket:
        connected = socket.create_connection(self._address, timeout=5)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._epoll.register(connected.fileno(), select.EPOLLIN)
        return connected

    def _send(self, due: float) -> None:
        connection = self._idle.pop()
        connection.due = due
        connection.received.clear()
        self._busy[connection.socket.fileno()] = connection
        try:
            connection.socket.sendall(self._message)
        except OSError:
            self._fail(connection)

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._fail(connection)
            return
        received = connection.received
        received += data
        head, end, body = received.partition(b"\r\n\r\n")
        if not end:
            return
        head = head.lower()
        _, has_length, rest = head.partition(b"content-length:")
        if len(body) < int(rest.partition(b"\r")[0]) if has_length else b"0\r\n\r\n" not in body:
            return
        if head[9:12] == b"200":
            self._latencies.append(time.perf_counter() - connection.due)
        else:
            self._failed += 1
        if b"connection: close" in head:
            self._replace(connection)
        else:
            self._idle.append(self._busy.pop(connection.socket.fileno()))

    def _closed(self, descriptor: int) -> None:
        """Replace a connection that the server has closed between requests."""
        (closed,) = (c for c in self._idle if c.socket.fileno() == descriptor)
        self._idle.remove(closed)
        closed.socket.close()
        self._idle.append(_Connection(self._connect()))

    def _fail(self, connection: _Connection) -> None:
        self._failed += 1
        self._replace(connection)

    def _replace(self, connection: _Connection) -> None:
        del self._busy[connection.socket.fileno()]
        connection.socket.close()
        try:
            self._idle.append(_Connection(self._connect()))
        except OSError:
            # Whatever comes now has a connection less.
            self._failed += 1


def probe(server: str, request: Request, rate: float, seed: int = 0) -> Probe:
    """Try one rate.

    Raises:
        OSError: the server accepts no connection.
    """
    seconds = min(_MAX_SECONDS, max(_SECONDS, _MIN_REQUESTS / rate))
    # The same for every server.
    latencies, lags, failed = Generator(server, request).run(rate, seconds, seed)
    ranks = (50.0, 99.0)
    values = np.percentile(latencies or [np.inf], ranks, method="inverted_cdf") * 1e3
    is_late = bool(lags) and float(np.mean(np.array(lags) > _LATE)) > _LATE_SHARE
    reason = ""
    if failed:
        reason = f"{failed} requests failed"
    elif values[1] > OBJECTIVE.milliseconds:
        reason = "the generator was late" if is_late else f"{OBJECTIVE} was missed"
    return Probe(
        rate=rate,
        answered=len(latencies) / seconds,
        latency_ms={f"p{rank:g}": float(value) for rank, value in zip(ranks, values, strict=True)},
        windows_ms=[],
        batch=0.0,
        held=not reason,
        reason=reason,
        generator_limited=bool(reason) and not failed and is_late,
    )


class _TooLowError(Exception):
    """A rate is so low that the machine, not the server, must be what is slow."""


def search(server: str, request: Request, expected: float, precision: float) -> list[Probe]:
    """Look for the rate, from a sixteenth to twice of what is expected, 0.4 of it first.

    Returns:
        Every probe, in order.
    """
    low, high = 0.4 * expected, 2 * expected
    bounds = Search(OBJECTIVE, "mnist-png", _SECONDS, 1, low, high, precision, processes=1)
    probes: list[Probe] = []

    def attempt(rate: float) -> Probe:
        if rate < expected / 16:
            raise _TooLowError
        probes.append(probe(server, request, rate))
        return probes[-1]

    with contextlib.suppress(_TooLowError):
        find(bounds, attempt)
    return probes
