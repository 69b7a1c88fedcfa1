"""Requests that a proxy and a server might read differently: each gets its own answers, counted.

The model answers with the body that it was sent, so that an answer tells whose it is.
"""

import asyncio
import itertools
import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from loadtest.traffic import Client, Load
from tests.archives import SLOW_HANDLER, foreign
from tests.reliability.wire import Answer, port_of, read_answer, request
from tests.serving import ServerProcess, serving

PATH = "/predictions/echo"
SMUGGLED = request(PATH, b"smuggled")
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    store = tmp_path_factory.mktemp("echo")
    foreign(store, "echo", SLOW_HANDLER.format(seconds=0), "batchSize: 4\n")
    with serving(store) as running:
        yield running


def head(*lines: bytes, version: bytes = b"1.1") -> bytes:
    first = b"POST %s HTTP/%s\r\nHost: a\r\n" % (PATH.encode(), version)
    return first + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)


CHUNKED = b"Transfer-Encoding: chunked"
LENGTH = b"Content-Length: 4"


class Attack(NamedTuple):
    """What is sent, and how it has to be answered.

    Attributes:
        sent: bytes of one request, or of what some would read as more than one.
        statuses: of the answers.
        bodies: of those answers that are 200, in order.
        stays_open: whether the connection can be used for another request.
    """

    sent: bytes
    statuses: tuple[int, ...] = (400,)
    bodies: tuple[bytes, ...] = ()
    stays_open: bool = False


def answered(sent: bytes, *, stays_open: bool = True, body: bytes = b"body") -> Attack:
    return Attack(sent, (200,), (body,), stays_open)


ATTACKS = {
    # --- Two lengths (RFC 9112, 6.3): chunked wins and the connection ends, or both are refused.
    "CL.TE": answered(
        head(b"Content-Length: %d" % len(chunk(b"body") + SMUGGLED), CHUNKED)
        + chunk(b"body")
        + SMUGGLED,
        stays_open=False,
    ),
    "CL.TE, empty body": Attack(
        head(b"Content-Length: 6", CHUNKED) + b"0\r\n\r\nG", (200,), (b"",), stays_open=False
    ),
    "TE.CL": answered(head(CHUNKED, LENGTH) + chunk(SMUGGLED), stays_open=False, body=SMUGGLED),
    "two lengths": Attack(head(LENGTH, b"Content-Length: 3") + b"body" + SMUGGLED),
    "two lengths, the larger second": Attack(head(LENGTH, b"Content-Length: 40") + b"body"),
    "a list of lengths": Attack(head(b"Content-Length: 4, 3") + b"body" + SMUGGLED),
    "the same length twice": answered(head(LENGTH, LENGTH) + b"body"),
    "the same length in a list": answered(head(b"Content-Length: 4, 4") + b"body"),
    # --- Lengths that parsers read differently.
    "a sign": Attack(head(b"Content-Length: +4") + b"body" + SMUGGLED),
    "a negative length": Attack(head(b"Content-Length: -1") + SMUGGLED),
    "a hexadecimal length": Attack(head(b"Content-Length: 0x4") + b"body" + SMUGGLED),
    "a length with a space": Attack(head(b"Content-Length: 4 0") + b"body" + SMUGGLED),
    "a length over 64 bits": Attack(
        head(b"Content-Length: 18446744073709551620") + b"body" + SMUGGLED
    ),
    "an empty length": Attack(head(b"Content-Length: ") + SMUGGLED),
    "a length with leading zeros": answered(head(b"Content-Length: 004") + b"body"),
    "a space before the colon": Attack(head(b"Content-Length : 4") + b"body" + SMUGGLED),
    "a length hidden from the next hop": answered(
        head(b"Connection: Content-Length", LENGTH) + b"body"
    ),
    # --- Codings that parsers read differently.
    "chunked twice": Attack(head(CHUNKED, CHUNKED) + chunk(b"body")),
    "identity": Attack(head(b"Transfer-Encoding: identity", LENGTH) + b"body" + SMUGGLED),
    "an unknown coding": Attack(head(b"Transfer-Encoding: xchunked", LENGTH) + b"body"),
    "chunked is not last": Attack(head(CHUNKED + b", x") + chunk(b"body")),
    "chunked after another": Attack(
        head(b"Transfer-Encoding: x, chunked") + chunk(b"body"), (422,)
    ),
    "a vertical tab": Attack(head(b"Transfer-Encoding: \x0bchunked") + chunk(b"body") + SMUGGLED),
    "a tab": answered(head(b"Transfer-Encoding:\tchunked") + chunk(b"body")),
    "a coding hidden from the next hop": answered(
        head(b"Connection: Transfer-Encoding", CHUNKED) + chunk(b"body")
    ),
    "chunked in HTTP/1.0": answered(
        head(CHUNKED, version=b"1.0") + chunk(b"body"), stays_open=False
    ),
    # --- Lines (RFC 9112, 2.2 and 5.2).
    "a folded coding": answered(head(b"Transfer-Encoding:", b" chunked") + chunk(b"body")),
    "a folded line that is not a coding": answered(head(b"X: a", b" " + CHUNKED, LENGTH) + b"body"),
    "a fold before every header": Attack(
        b"POST %s HTTP/1.1\r\n Host: a\r\n%s\r\n\r\nbody" % (PATH.encode(), LENGTH)
    ),
    "a carriage return in a value": Attack(
        head(b"X: a\rContent-Length: 0", LENGTH) + b"body" + SMUGGLED
    ),
    "a zero byte in a value": Attack(head(b"X: a\0b", LENGTH) + b"body"),
    "line feeds alone": answered(
        b"POST %s HTTP/1.1\nHost: a\n%s\n\nbody" % (PATH.encode(), LENGTH)
    ),
    "no version": Attack(b"GET /\r\n\r\n"),
    "two hosts": Attack(head(b"Host: b", LENGTH) + b"body" + SMUGGLED),
    # --- Chunks (RFC 9112, 7.1).
    "an extension": answered(head(CHUNKED) + b"4;a=b\r\nbody\r\n0\r\n\r\n"),
    "a line feed in an extension": Attack(head(CHUNKED) + b"4;a\nbody\r\n0\r\n\r\n" + SMUGGLED),
    "line feeds around a chunk": Attack(head(CHUNKED) + b"4\nbody\n0\n\n" + SMUGGLED),
    "a negative chunk": Attack(head(CHUNKED) + b"-4\r\nbody\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk with 0x": Attack(head(CHUNKED) + b"0x4\r\nbody\r\n0\r\n\r\n" + SMUGGLED),
    "a chunk over 64 bits": Attack(
        head(CHUNKED) + b"10000000000000004\r\nbody\r\n0\r\n\r\n" + SMUGGLED
    ),
    "a chunk longer than stated": Attack(head(CHUNKED) + b"3\r\nbody\r\n0\r\n\r\n" + SMUGGLED),
    "leading zeros of a chunk": answered(head(CHUNKED) + b"00000004\r\nbody\r\n0\r\n\r\n"),
    "a length in the trailer": answered(
        head(CHUNKED) + b"4\r\nbody\r\n0\r\nContent-Length: 40\r\n\r\n"
    ),
    # --- Expectations: Netty answers those that it does not know before it has read the body, and
    # reads that as the next request.
    "an unknown expectation": answered(request(PATH, SMUGGLED, b"Expect: x\r\n"), body=SMUGGLED),
    "an unknown expectation, chunked": answered(
        head(b"Expect: 100-continue, x", CHUNKED) + chunk(SMUGGLED), body=SMUGGLED
    ),
    "100-continue with the body": answered(
        request(PATH, SMUGGLED, b"Expect: 100-continue\r\n"), body=SMUGGLED
    ),
    # --- Protocols that a server might switch to.
    "upgrade to HTTP/2": answered(
        request(
            PATH,
            b"body",
            b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        )
    ),
    "upgrade to WebSocket, without its key": Attack(
        request(PATH, SMUGGLED, b"Connection: Upgrade\r\nUpgrade: websocket\r\n")
    ),
    "a tunnel": Attack(b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", (404,), stays_open=True),
    # --- More in the head than TorchServe takes, 8 KiB, or HAProxy, 101 headers and 15 KiB.
    "a head of 9 KiB": Attack(
        request(PATH, SMUGGLED, b"X: %s\r\n" % (b"x" * 9000)), stays_open=True
    ),
    "a vertical tab in a value": Attack(request(PATH, SMUGGLED, b"X: a\x0bb\r\n"), stays_open=True),
    "120 headers": Attack(request(PATH, SMUGGLED, b"X: y\r\n" * 120)),
    "a head of 20 KiB": Attack(request(PATH, SMUGGLED, b"X: %s\r\n" % (b"x" * 20_000))),
}


async def exchange(port: int, attack: Attack) -> list[Answer]:
    """Send an attack and, if its connection is to stay open, a request that tells its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    mark = b"mark %d" % next(_numbers)
    try:
        writer.write(attack.sent + (request(PATH, mark) if attack.stays_open else b""))
        answers = []
        for _ in range(len(attack.statuses) + attack.stays_open):
            answer = await asyncio.wait_for(read_answer(reader), 30)
            assert answer, "the connection ended"
            answers.append(answer)
        if attack.stays_open:
            last = answers.pop()
            assert (last.status, last.body) == (200, mark)
        else:
            assert await asyncio.wait_for(read_answer(reader), 30) is None, "more answers"
        return answers
    finally:
        writer.close()


class Neighbours:
    """Users that count the answers that were not theirs."""

    def __init__(self, server: ServerProcess) -> None:
        self._url = server.url("echo")
        self.answers = 0
        self.wrong: list[tuple[bytes, int, bytes]] = []

    async def __call__(self, load: Load) -> None:
        client = Client(self._url)
        while not load.over:
            body = b"neighbour %d" % next(_numbers)
            outcome = await client.ask(body)
            self.answers += 1
            if (outcome.status, outcome.body) != (200, body):
                self.wrong.append((body, outcome.status, outcome.body))
        await client.close()


def beside(
    server: ServerProcess, attack: Callable[[], Coroutine[Any, Any, int]], users: int = 4
) -> Neighbours:
    """Run an attack beside neighbours, and compare the requests with those that TorchServe counts.

    Args:
        server: with the model.
        attack: returns how many of its requests the model has answered.
        users: that share TorchServe's connections with it.
    """
    before = server.metric("ts_inference_requests_total")
    neighbours = Neighbours(server)
    with Load(*[neighbours] * users):
        count = asyncio.run(attack())
    assert neighbours.wrong == []
    assert server.metric("ts_inference_requests_total") - before == count + neighbours.answers
    return neighbours


@pytest.mark.parametrize("name", ATTACKS)
def test_each_request_gets_its_own_answer(server: ServerProcess, name: str) -> None:
    attack, port = ATTACKS[name], port_of(server.inference)

    async def run() -> int:
        for _ in range(20):
            for answers in await asyncio.gather(*(exchange(port, attack) for _ in range(5))):
                assert tuple(answer.status for answer in answers) == attack.statuses
                good = tuple(answer.body for answer in answers if answer.status == 200)
                assert good == attack.bodies
        return 100 * (len(attack.bodies) + attack.stays_open)

    beside(server, run)


HEADERS_HANDLER = """
import json

def handle(requests, context):
    if requests is None:
        return None
    headers = (context.get_all_request_header(index) for index in range(len(requests)))
    return [json.dumps({name.lower(): value for name, value in each.items()}) for each in headers]
"""


def test_headers_of_the_door_are_not_a_client_s(tmp_path: Path) -> None:
    foreign(tmp_path, "headers", HEADERS_HANDLER, "batchSize: 4\n")
    mine = {"Explain": "True", "X-Protocol": "v2", "Expect": "x", "X-Other": "1"}
    with serving(tmp_path) as server:
        got = requests.post(server.url("headers"), data=b"x", headers=mine, timeout=60).json()
    assert got["x-other"] == "1"
    assert got["explain"] == "False"  # TorchServe's own
    assert not {"x-protocol", "expect"} & set(got)


# --- HTTP/2, which the door makes HTTP/1.1 of. Headers are not indexed (RFC 7541, 6.2.3).

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5)
DATA, HEADERS, RST_STREAM, GOAWAY = 0, 1, 3, 7


def frame(kind: int, flags: int, content: bytes) -> bytes:
    return len(content).to_bytes(3) + bytes([kind, flags, 0, 0, 0, 1]) + content


def literal(name: bytes, value: bytes) -> bytes:
    return b"\x10" + bytes([len(name)]) + name + bytes([len(value)]) + value


def http_2(body: bytes, *headers: tuple[bytes, bytes], path: bytes = PATH.encode()) -> bytes:
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"a")]
    block = b"".join(literal(*field) for field in (*fields, *headers))
    return PREFACE + frame(HEADERS, 4, block) + frame(DATA, 1, body)


def frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 9:
        size = int.from_bytes(data[:3])
        yield data[3], data[9 : 9 + size]
        data = data[9 + size :]


def ask_http_2(port: int, sent: bytes) -> list[tuple[int, bytes]]:
    """The frames that come back until the stream is answered or reset."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(sent)
        data = b""
        while not any(kind in (DATA, RST_STREAM, GOAWAY) for kind, _ in frames(data)):
            part = client.recv(1 << 16)
            if not part:
                break
            data += part
        return list(frames(data))


def test_http_2_is_answered(server: ServerProcess) -> None:
    assert (DATA, b"body") in ask_http_2(port_of(server.inference), http_2(b"body"))


@pytest.mark.parametrize(
    "sent",
    [
        http_2(b"body", (b"transfer-encoding", b"chunked")),
        http_2(b"body", (b"x", b"a\r\nTransfer-Encoding: chunked")),
        http_2(b"body", (b"x: a\r\ny", b"b")),
        http_2(b"body", (b"content-length", b"3")),
        http_2(b"body", (b"content-length", b"40")),
        http_2(b"body", (b"content-length", b"4"), (b"content-length", b"5")),
        http_2(b"body", (b"connection", b"close")),
        http_2(b"body", (b"X", b"y")),
        http_2(b"body", path=PATH.encode() + b" HTTP/1.1\r\nX: y"),
        http_2(b"body", (b":path", b"/predictions/other")),
    ],
)
def test_http_2_that_cannot_be_made_http_1(server: ServerProcess, sent: bytes) -> None:
    port = port_of(server.inference)

    async def run() -> int:
        for _ in range(20):
            got = await asyncio.to_thread(ask_http_2, port, sent)
            assert DATA not in [kind for kind, _ in got]
            assert {RST_STREAM, GOAWAY} & {kind for kind, _ in got}
        return 0

    beside(server, run)
