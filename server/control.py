"""The control app: probes, scrapes and reloads for operators, health and metadata for clients."""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from server import client_api, docs, page
from server.door import DoorError, read_tokens
from server.metadata import UnknownModelError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# For the headers of a request, from the begin of its connection or its first byte on. The door has
# a limit of its own; this is for clients of the port for operators.
_HEADER_SECONDS = 10.0
# The answers themselves need nothing: what does (the docs, the page) says what.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_REASONS = {404: "ResourceNotFoundException", 405: "MethodNotAllowedException"}


class Service(client_api.Service, Protocol):
    """What the apps show."""

    def metrics(self) -> bytes:
        """Body of `/metrics`."""

    def reload(self) -> tuple[int, dict[str, Any]]:
        """Serve the store as it is now; status and report of `POST /reload`."""


def operators_app(service: Service, token_file: Path | None) -> ASGIApp:
    """Answer at the port for operators.

    Args:
        service: whose state it shows.
        token_file: tokens that may reload from elsewhere than loopback; None: nobody may.
    """

    def probe(report: Callable[[], tuple[int, dict[str, Any]]]) -> Callable[[Request], Response]:
        def endpoint(_: Request) -> Response:
            status, body = report()
            return JSONResponse(body, status)

        return endpoint

    def metrics(_: Request) -> Response:
        return Response(service.metrics(), media_type=CONTENT_TYPE)

    def reload(request: Request) -> Response:
        if not _may_reload(request, token_file):
            return problem(
                401,
                "UnauthorizedException",
                "a reload is for clients on loopback, or with a bearer token of TOKEN_FILE",
                {"WWW-Authenticate": "Bearer"},
            )
        status, body = service.reload()
        return JSONResponse(body, status)

    routes = [
        Route("/livez", probe(service.liveness)),
        Route("/readyz", probe(service.readiness)),
        Route("/metrics", metrics),
        Route("/reload", reload, methods=["POST"]),
    ]
    paths = ", ".join(sorted(route.path for route in routes))
    return _app(routes, f"there are: {paths}")


def clients_app(service: Service, *, has_tokens: bool) -> ASGIApp:
    """Answer what the door passes on that needs no model.

    Args:
        service: whose models and health it shows.
        has_tokens: whether the door asks for tokens.
    """
    return _app(
        [
            *client_api.routes(service),
            *page.routes(),
            *docs.routes(service, has_tokens=has_tokens),
        ],
        "/docs shows what there is",
    )


def problem(
    code: int, kind: str, message: str, headers: dict[str, str] | None = None, key: str = "message"
) -> JSONResponse:
    """An error in the shape of TorchServe's."""
    return JSONResponse({"code": code, "type": kind, key: message}, code, headers)


def _app(routes: list[Route], hint: str) -> ASGIApp:
    """The routes, with errors in the form of their protocol; `hint` helps to find another path."""

    def refuse(
        request: Request, code: int, kind: str, message: str, headers: dict[str, str] | None = None
    ) -> Response:
        is_v2 = request.url.path.split("/")[1] == "v2"
        return problem(code, kind, message, headers, "error" if is_v2 else "message")

    def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is nothing at {request.url.path:.200}; {hint}"
        elif error.status_code == 405:
            message = f"expected {(error.headers or {}).get('Allow')}"
        kind = _REASONS.get(error.status_code, "BadRequestException")
        headers = dict(error.headers) if error.headers else None
        return refuse(request, error.status_code, kind, message, headers)

    def unknown_model(request: Request, error: Exception) -> Response:
        assert isinstance(error, UnknownModelError)
        return refuse(request, 404, error.kind, str(error))

    def failure(request: Request, _: Exception) -> Response:
        return refuse(request, 500, "InternalServerException", "the server failed on this request")

    app = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: http_error,
            UnknownModelError: unknown_model,
            Exception: failure,
        },
    )
    # A redirection would name this app's scheme and not the door's.
    app.router.redirect_slashes = False
    return _with_headers(app)


def _with_headers(app: ASGIApp) -> ASGIApp:
    """Confine what browsers do with an answer, unless the answer itself says how far."""

    async def confined(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_confined(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await app(scope, receive, send_confined)

    return confined


def _may_reload(request: Request, token_file: Path | None) -> bool:
    if request.client and _is_loopback(request.client.host):
        return True
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if token_file is None or scheme.lower() != "bearer":
        return False
    with contextlib.suppress(DoorError):
        digest = hashlib.sha256(token.strip().encode()).hexdigest()
        known = read_tokens(token_file)
        return sum(hmac.compare_digest(digest, each) for each in known) > 0
    return False


def _is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host)
    # Of an IPv4 client a listener of both families has the address mapped, ::ffff:127.0.0.1.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


class _ImpatientProtocol(H11Protocol):
    """Closes a connection on which the headers of a request take too long to come.

    uvicorn itself ends idle connections only after a first request, and waits without end for the
    rest of headers that have begun.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_headers()

    def _expect_headers(self) -> None:
        if not self._waits_for_headers():
            if self._deadline:
                self._deadline.cancel()
            self._deadline = None
        elif self._deadline is None:
            self._deadline = self.loop.call_later(_HEADER_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._deadline = None
        if self._waits_for_headers():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP in the form of the other errors; uvicorn's own is plain text."""
        refusal = problem(400, "BadRequestException", f"the request is malformed: {msg}")
        headers = [*refusal.raw_headers, (b"connection", b"close")]
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        head = b"HTTP/1.1 400 Bad Request\r\n%s\r\n" % lines
        self.transport.write(head + bytes(refusal.body))
        self.transport.close()

    def _waits_for_headers(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


class Server(Protocol):
    """What runs in the event loop of a `ControlServer`."""

    started: bool
    should_exit: bool

    async def serve(self) -> None:
        """Answer until `should_exit`."""


class ControlServer:
    """Runs apps on sockets, in a thread with an event loop of its own.

    Args:
        apps: a bound socket for each app.
        others: servers that bind their own sockets.
    """

    def __init__(
        self, apps: Sequence[tuple[ASGIApp, socket.socket]], others: Sequence[Server] = ()
    ) -> None:
        self._others = others
        self._servers = [
            (
                uvicorn.Server(
                    uvicorn.Config(
                        app,
                        http=_ImpatientProtocol,
                        lifespan="off",
                        log_level="warning",
                        access_log=False,
                        server_header=False,
                        timeout_keep_alive=75,
                        timeout_graceful_shutdown=1,
                        limit_concurrency=1000,
                        # The door's peer is a Unix socket, and no header is believed.
                        proxy_headers=False,
                    )
                ),
                listener,
            )
            for app, listener in apps
        ]
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        """Answer from now on.

        Raises:
            RuntimeError: a server failed; its own error is on standard error.
        """
        self._thread.start()
        while not all(server.started for server in self._all):
            if not self._thread.is_alive():
                raise RuntimeError("the control app did not start")
            time.sleep(0.01)

    @property
    def _all(self) -> list[Server]:
        return [*(server for server, _ in self._servers), *self._others]

    def _run(self) -> None:
        async def serve() -> None:
            await asyncio.gather(
                *(server.serve(sockets=[listener]) for server, listener in self._servers),
                *(server.serve() for server in self._others),
            )

        asyncio.run(serve())

    def stop(self) -> None:
        """Answer what was asked, and close the sockets."""
        for server in self._all:
            server.should_exit = True
        self._thread.join(timeout=5.0)
