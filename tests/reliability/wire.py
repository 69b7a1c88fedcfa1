"""HTTP/1.1 as bytes: requests that no library would send, and answers one by one."""

import asyncio
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """What came back for one request.

    Attributes:
        status: of the answer.
        headers: by name in lower case.
        body: without its framing.
    """

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        """Whether no further answer comes on this connection."""
        return "close" in self.headers.get("connection", "").lower()


def request(
    path: str, body: bytes, headers: bytes = b"", *, method: str = "POST", length: int | None = None
) -> bytes:
    """A request with a body of stated length; `length` states another one."""
    size = len(body) if length is None else length
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n".encode("latin-1")
    return head + headers + b"\r\n" + body


def port_of(url: str) -> int:
    """The port that a server's URL names."""
    port = urlsplit(url).port
    assert port
    return port


def ask(port: int, sent: bytes, count: int = 1, method: str = "POST") -> list[Answer | None]:
    """Send bytes over a connection of their own, and read so many answers.

    Raises:
        TimeoutError: one did not come within 30 s.
    """

    async def run() -> list[Answer | None]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        writer.write(sent)
        try:
            return [await asyncio.wait_for(read_answer(reader, method), 30) for _ in range(count)]
        finally:
            writer.close()

    return asyncio.run(run())


async def read_answer(reader: asyncio.StreamReader, method: str = "POST") -> Answer | None:
    """The next answer, but for interim ones; None at the end of the connection.

    Args:
        reader: of the connection.
        method: of the request, as an answer to HEAD has no body.

    Raises:
        EOFError, OSError, ValueError: the answer is cut off or malformed.
    """
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return None
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        version, status, *_ = first.split(" ")
        if not version.startswith("HTTP/1."):
            raise ValueError(f"not an answer: {first!r}")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if not status.startswith("1"):
            break
    has_body = method != "HEAD" and status not in ("204", "304")
    body = await _read_body(reader, headers) if has_body else b""
    return Answer(int(status), headers, body)


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    if headers.get("transfer-encoding") != "chunked":
        headers["connection"] = "close"
        return await reader.read()
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return body
