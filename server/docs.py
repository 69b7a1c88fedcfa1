"""`/openapi.json`, and Swagger UI at `/docs`, which shows it; the UI's files are `offapi`'s."""

import importlib.metadata
import json
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from server.openapi import describe
from server.watcher import ModelState

_HEADERS = {
    # Kept by browsers, but never shown without asking whether it has changed.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
}
_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Model server: API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
<div id="ui"></div>
<script src="/docs/swagger-ui.js"></script>
<script src="/docs/start.js"></script>
</html>
"""
_START = """\
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#ui",
  tryItOutEnabled: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  // It would send the description to another host.
  validatorUrl: null,
});
"""


class Service(Protocol):
    """What is described."""

    def models(self) -> list[ModelState]:
        """Each model that is served."""


def routes(service: Service, *, has_tokens: bool) -> list[Route]:
    """The description and what shows it.

    Raises:
        importlib.metadata.PackageNotFoundError: offapi is not installed.
    """
    # Importing offapi would read all that it has, 9 MB.
    package = importlib.metadata.distribution("offapi").locate_file("offapi")
    files = StaticFiles(directory=str(package))

    def text(content: str, media_type: str) -> Callable[[Request], Response]:
        def endpoint(_: Request) -> Response:
            return Response(content, headers=_HEADERS, media_type=media_type)

        return endpoint

    def file(name: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            response = await files.get_response(name, request.scope)
            # Systems differ in the type that they give a script.
            response.headers.update(_HEADERS | {"Content-Type": f"{media_type}; charset=utf-8"})
            return response

        return endpoint

    described: dict[tuple[str, ...], bytes] = {}

    def openapi(_: Request) -> Response:
        archives = [state.archive for state in service.models()]
        # It changes with a reload only, and takes some milliseconds, which anybody may ask for.
        key = tuple(archive.sha256 for archive in archives)
        body = described.get(key)
        if body is None:
            body = json.dumps(describe(archives, has_tokens=has_tokens)).encode()
            described.clear()
            described[key] = body
        return Response(body, headers=_HEADERS, media_type="application/json")

    return [
        Route("/openapi.json", openapi),
        Route("/docs", text(_PAGE, "text/html")),
        Route("/docs/start.js", text(_START, "text/javascript")),
        Route("/docs/swagger-ui.js", file("swagger_bundle.js", "text/javascript")),
        Route("/docs/swagger-ui.css", file("swagger_style.css", "text/css")),
    ]
