"""The listener for probes and scrapes, answered by callables."""

import json
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from server.settings import Address

Probe = Callable[[], tuple[int, dict[str, Any]]]
Scrape = Callable[[], tuple[str, bytes]]


class TelemetryServer:
    """Answers GET and HEAD for a fixed set of paths.

    Args:
        address: where to bind.
        probes: by path, what gives a status and JSON.
        scrapes: by path, what gives a content type and a body.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(
        self, address: Address, probes: Mapping[str, Probe], scrapes: Mapping[str, Scrape]
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                status, content_type = 200, "application/json"
                if path in scrapes:
                    content_type, body = scrapes[path]()
                else:
                    known = {"paths": sorted([*probes, *scrapes])}
                    status, document = probes[path]() if path in probes else (404, known)
                    body = json.dumps(document).encode() + b"\n"
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 (the base class calls it so)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (likewise)
                """Probes come every few seconds; a line for each would bury all others."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(
                self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
            ) -> None:
                # A prober that has gone away is no news, and no traceback.
                if not isinstance(sys.exception(), ConnectionError):
                    super().handle_error(request, client_address)

        self._server = Server((address.host, address.port), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )

    def start(self) -> None:
        """Answer from now on, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Close the listener."""
        self._server.shutdown()
        self._server.server_close()
