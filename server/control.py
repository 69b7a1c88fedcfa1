"""The control app: probes, scrapes and reloads for operators, health and metadata for clients."""

import asyncio
import contextlib
import hashlib
import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from server import page
from server.door import DoorError, read_tokens

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# For the headers of a request, from the begin of its connection or its first byte on. The door has
# a limit of its own; this is for clients of the port for operators.
_HEADER_SECONDS = 10.0
_REASONS = {404: "ResourceNotFoundException", 405: "MethodNotAllowedException"}


class Service(Protocol):
    """What the apps show."""

    def liveness(self) -> tuple[int, dict[str, Any]]:
        """Status and report of `/livez`."""

    def readiness(self) -> tuple[int, dict[str, Any]]:
        """Status and report of `/readyz`."""

    def metrics(self) -> bytes:
        """Body of `/metrics`."""

    def reload(self) -> tuple[int, dict[str, Any]]:
        """Serve the store as it is now; status and report of `POST /reload`."""


def operators_app(service: Service, token_file: Path | None) -> Starlette:
    """What the port for operators answers.

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

    return _app(
        [
            Route("/livez", probe(service.liveness)),
            Route("/readyz", probe(service.readiness)),
            Route("/metrics", metrics),
            Route("/reload", reload, methods=["POST"]),
        ]
    )


def clients_app(service: Service) -> Starlette:
    """What the door passes on that needs no model."""

    def live(_: Request) -> Response:
        return JSONResponse({"live": service.liveness()[0] == 200})

    def ready(_: Request) -> Response:
        is_ready = service.readiness()[0] == 200
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    def root(request: Request) -> Response:
        # Only browsers ask for HTML by name; V1's clients expect the protocol's liveness.
        if "text/html" in request.headers.get("Accept", ""):
            response = page.index(request)
        else:
            response = JSONResponse({"status": "alive"})
        response.headers["Vary"] = "Accept"
        return response

    return _app(
        [
            Route("/", root),
            *page.routes(),
            Route("/v2/health/live", live),
            Route("/v2/health/ready", ready),
        ]
    )


def problem(
    code: int, kind: str, message: str, headers: dict[str, str] | None = None, key: str = "message"
) -> JSONResponse:
    """An error in the shape of TorchServe's."""
    return JSONResponse({"code": code, "type": kind, key: message}, code, headers)


def _app(routes: list[Route]) -> Starlette:
    paths = ", ".join(sorted(route.path for route in routes))

    def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is nothing at {request.url.path:.200}; there are: {paths}"
        kind = _REASONS.get(error.status_code, "BadRequestException")
        key = "error" if request.url.path.startswith("/v2/") else "message"
        headers = dict(error.headers) if error.headers else None
        return problem(error.status_code, kind, message, headers, key)

    return Starlette(routes=routes, exception_handlers={HTTPException: http_error})


def _may_reload(request: Request, token_file: Path | None) -> bool:
    if request.client and ipaddress.ip_address(request.client.host).is_loopback:
        return True
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if token_file is None or scheme.lower() != "bearer":
        return False
    with contextlib.suppress(DoorError):
        return hashlib.sha256(token.strip().encode()).hexdigest() in read_tokens(token_file)
    return False


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

    def _waits_for_headers(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


class ControlServer:
    """Runs apps on sockets, in a thread with an event loop of its own.

    Args:
        apps: a bound socket for each app.
    """

    def __init__(self, apps: Sequence[tuple[Starlette, socket.socket]]) -> None:
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
        """Answer from now on."""
        self._thread.start()

    def _run(self) -> None:
        async def serve() -> None:
            await asyncio.gather(
                *(server.serve(sockets=[listener]) for server, listener in self._servers)
            )

        asyncio.run(serve())

    def stop(self) -> None:
        """Answer what was asked, and close the sockets."""
        for server, _ in self._servers:
            server.should_exit = True
        self._thread.join(timeout=5.0)
