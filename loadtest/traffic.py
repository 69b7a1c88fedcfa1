"""Clients for tests and benchmarks, which say of each request what became of it."""

import asyncio
import contextlib
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self
from urllib.parse import urlsplit

from typing_extensions import override

from loadtest.arrivals import schedule

LOST = 0
REFUSED = -1
TIMEOUT_SECONDS = 60.0
_connections = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request.

    Attributes:
        sent: `time.monotonic` of when it was sent, or was to be sent in an open loop.
        seconds: from then to the end of the answer.
        status: of the answer; `LOST` where the connection ended or fell silent without one,
            `REFUSED` where there was no connection to send it over.
        body: of the answer, or what happened instead.
        connection: a number for the connection that it was sent over.
    """

    sent: float
    seconds: float
    status: int
    body: bytes = b""
    connection: int = 0


class _Protocol(asyncio.StreamReaderProtocol):
    """Keeps what came before a connection broke; asyncio drops it if a write noticed first."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        super().__init__(reader)
        self._reader = reader
        self._connection: asyncio.BaseTransport | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not transport.get_extra_info("sslcontext"):
            self._connection = transport

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection and isinstance(exc, ConnectionError):
            socket = self._connection.get_extra_info("socket")
            with socket.dup() as rest, contextlib.suppress(OSError):
                while part := rest.recv(1 << 16):
                    self._reader.feed_data(part)
            exc = None
        super().connection_lost(exc)


class Client:
    """One keep-alive connection at a time.

    Args:
        url: of the server, with the path; `https` trusts whom OpenSSL trusts.
        pause: seconds between the parts of a body that is sent in ten, or 0 to send it as one.
        read_pause: likewise of an answer that is read in ten parts.
    """

    def __init__(self, url: str, pause: float = 0.0, read_pause: float = 0.0) -> None:
        parts = urlsplit(url)
        self._is_secure = parts.scheme == "https"
        self._port = parts.port or (443 if self._is_secure else 80)
        self._host, self._path = parts.hostname or "", parts.path
        self._pause, self._read_pause = pause, read_pause
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._connection = 0

    async def ask(self, body: bytes, headers: str = "", sent: float | None = None) -> Outcome:
        """Send a request, over the connection that is there if it was not told to close."""
        sent = sent or time.monotonic()

        def outcome(status: int, answer: bytes = b"") -> Outcome:
            return Outcome(sent, time.monotonic() - sent, status, answer, self._connection)

        try:
            if self._streams is None:
                # What a slow reader has not read is to wait in the server, not in this process.
                limit = 1 << 14 if self._read_pause else 1 << 24
                self._streams = await asyncio.wait_for(self._connect(limit), TIMEOUT_SECONDS)
                self._connection = next(_connections)
        except (OSError, TimeoutError):
            return outcome(REFUSED)
        try:
            status, answer = await asyncio.wait_for(self._exchange(body, headers), TIMEOUT_SECONDS)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            await self.close()
            return outcome(LOST, f"{len(body)} bytes sent: {error!r}".encode())
        return outcome(status, answer)

    async def _connect(self, limit: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit, loop)
        transport, protocol = await loop.create_connection(
            lambda: _Protocol(reader), self._host, self._port, ssl=self._is_secure or None
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _exchange(self, body: bytes, headers: str) -> tuple[int, bytes]:
        assert self._streams
        reader, writer = self._streams
        head = f"POST {self._path} HTTP/1.1\r\nHost: {self._host}\r\n"
        head += f"Content-Length: {len(body)}\r\n{headers}"
        # A refusal may come before the end of the body, and the connection be closed behind it:
        # HAProxy 2.8 does not read the rest. It is there for whoever reads while he sends.
        answer = asyncio.create_task(self._read(reader))
        step = max(1, len(body) // 10) if self._pause else max(1, len(body))
        with contextlib.suppress(ConnectionError):
            writer.write(f"{head}\r\n".encode())
            for begin in range(0, len(body), step):
                if answer.done():
                    break
                writer.write(body[begin : begin + step])
                await writer.drain()
                if self._pause:
                    # Not a sleep: the rest need not be sent after a refusal.
                    await asyncio.wait([answer], timeout=self._pause)
        status, content, closing = await answer
        if closing:
            await self.close()
        return status, content

    async def _read(self, reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        status, closing = int(head.split(" ", 2)[1]), "connection: close" in head
        if "transfer-encoding: chunked" in head:
            return status, await self._read_chunks(reader), closing
        length = int(head.partition("content-length:")[2].partition("\r\n")[0])
        content = b""
        while len(content) < length:
            rest = length - len(content)
            part = min(rest, length // 10 + 1) if self._read_pause else rest
            content += await reader.readexactly(part)
            if self._read_pause:
                await asyncio.sleep(self._read_pause)
        return status, content, closing

    async def _read_chunks(self, reader: asyncio.StreamReader) -> bytes:
        content = b""
        while size := int(await reader.readline(), 16):
            content += (await reader.readexactly(size + 2))[:size]
        await reader.readline()
        return content

    async def close(self) -> None:
        """Close the connection."""
        if self._streams:
            self._streams[1].close()
            self._streams = None


class Background:
    """A thread that runs `_run` inside a `with` block, until `_over` is set at its end."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


class Load(Background):
    """Clients in a thread of their own; in a `with` block they run.

    Args:
        users: each is called with the load, and ends when `load.over` says so.

    Attributes:
        outcomes: of all requests so far.
    """

    def __init__(self, *users: Callable[["Load"], Awaitable[None]]) -> None:
        super().__init__()
        self._users = users
        self.outcomes: list[Outcome] = []

    def _run(self) -> None:
        async def run() -> None:
            await asyncio.gather(*(user(self) for user in self._users))

        asyncio.run(run())

    @property
    def over(self) -> bool:
        """Whether users are to send no further request."""
        return self._over.is_set()

    def wait(self) -> None:
        """Until every user has ended by itself."""
        self._thread.join()

    @property
    def statuses(self) -> Counter[int]:
        """How many requests had each status."""
        return Counter(outcome.status for outcome in self.outcomes)


def keep_alive(  # noqa: PLR0913 (each is a way in which clients differ)
    url: str,
    bodies: Sequence[bytes],
    *,
    idle: float = 0.0,
    pause: float = 0.0,
    read_pause: float = 0.0,
    headers: str = "",
    count: int | None = None,
    one_connection: bool = True,
) -> Callable[[Load], Awaitable[None]]:
    """A user that sends one request after the other.

    Args:
        url: with the path.
        bodies: in turn.
        idle: seconds between an answer and the next request.
        pause: see `Client`.
        read_pause: see `Client`.
        headers: lines of each request.
        count: of requests, or None to go on until the load is over.
        one_connection: whether it keeps its connection from request to request.
    """

    async def user(load: Load) -> None:
        client = Client(url, pause, read_pause)
        number = 0
        while not load.over and number != count:
            outcome = await client.ask(bodies[number % len(bodies)], headers)
            load.outcomes.append(outcome)
            if outcome.status == REFUSED and load.over:
                break
            number += 1
            if not one_connection:
                await client.close()
            await asyncio.sleep(idle if outcome.status != REFUSED else max(idle, 0.01))
        await client.close()

    return user


def open_loop(  # noqa: PLR0913 (each is a way in which loads differ)
    url: str,
    body: bytes,
    rate: float,
    seconds: float,
    *,
    delay: float = 0.0,
    connections: int | None = None,
    keep_bodies: bool = False,
    headers: str = "",
) -> Callable[[Load], Awaitable[None]]:
    """A user that sends at a rate, whatever the answers do.

    Args:
        url: with the path.
        body: of every request.
        rate: requests a second, a Poisson process.
        seconds: from the first request to the last.
        delay: seconds before the first.
        connections: of which each takes its turn, or None for as many as are needed. A request that
            waits for one counts from when it was to be sent.
        keep_bodies: whether outcomes of 200 have theirs; there may be a million.
        headers: lines of each request.
    """

    async def user(load: Load) -> None:
        idle: asyncio.Queue[Client] = asyncio.Queue()
        for _ in range(connections or 0):
            idle.put_nowait(Client(url))
        tasks: set[asyncio.Task[None]] = set()

        async def one(sent: float) -> None:
            client = Client(url) if connections is None and idle.empty() else await idle.get()
            if connections is not None and load.over:  # it was never sent
                idle.put_nowait(client)
                return
            outcome = await client.ask(body, headers, sent)
            load.outcomes.append(
                outcome if keep_bodies or outcome.status != 200 else replace(outcome, body=b"")
            )
            idle.put_nowait(client)

        start = time.monotonic() + delay
        for moment in schedule("poisson", rate, start, random.Random(1)):  # noqa: S311
            if moment > start + seconds or load.over:
                break
            await asyncio.sleep(max(0.0, moment - time.monotonic()))
            task = asyncio.create_task(one(moment))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        while not idle.empty():
            await idle.get_nowait().close()

    return user


def percentile(outcomes: Sequence[Outcome], share: float) -> float:
    """Seconds that so large a share of the requests did not exceed (nearest rank)."""
    ordered = sorted(outcome.seconds for outcome in outcomes)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def of_status(outcomes: Sequence[Outcome], *statuses: int) -> Iterator[Outcome]:
    """Those outcomes that have one of these statuses."""
    return (outcome for outcome in outcomes if outcome.status in statuses)


def describe(load: Load) -> dict[str, Any]:
    """Counts and percentiles for a report, in milliseconds."""
    good = [*of_status(load.outcomes, 200)]
    refused = [*of_status(load.outcomes, 429, 503)]
    return {
        "sent": len(load.outcomes),
        "statuses": dict(load.statuses),
        "p50_ms": round(1e3 * percentile(good, 0.5), 1),
        "p99_ms": round(1e3 * percentile(good, 0.99), 1),
        "refused_p99_ms": round(1e3 * percentile(refused, 0.99), 1),
    }
