"""HTTP over a Unix socket."""

import contextlib
import http.client
import socket
from pathlib import Path
from typing import NamedTuple

from typing_extensions import override


class Response(NamedTuple):
    """Status and body of an answer."""

    status: int
    body: bytes


class UnixConnection(http.client.HTTPConnection):
    """An HTTP/1.1 connection to a Unix socket.

    Args:
        path: of the socket.
        timeout: seconds for each operation on it.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    @override
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def ask(self, method: str, path: str, body: bytes | None = None) -> Response:
        """Send a request and read its answer.

        Raises:
            OSError: no answer, or none in time.
            http.client.HTTPException: an answer that is not HTTP.
        """
        self.request(method, path, body)
        answer = self.getresponse()
        return Response(answer.status, answer.read())


def fetch(
    socket_path: Path, method: str, path: str, body: bytes | None, timeout: float
) -> Response:
    """Send one request over a connection of its own; raises what `UnixConnection.ask` does."""
    with contextlib.closing(UnixConnection(socket_path, timeout)) as connection:
        return connection.ask(method, path, body)
