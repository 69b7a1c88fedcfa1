"""The listener for probes: `/livez` and `/readyz`, answered by callables."""

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from handler.settings import Address

Probe = Callable[[], tuple[int, dict[str, Any]]]


class TelemetryServer:
    """Answers GET and HEAD for a fixed set of paths with the status and JSON that each gives.

    Args:
        address: where to bind.
        probes: by path.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(self, address: Address, probes: Mapping[str, Probe]) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                probe = probes.get(self.path.partition("?")[0])
                status, document = probe() if probe else (404, {"paths": sorted(probes)})
                body = json.dumps(document).encode() + b"\n"
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 (the base class calls it so)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (likewise)
                """Probes come every few seconds; a line for each would bury all others."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

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
