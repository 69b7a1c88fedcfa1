"""The page at `/`: static files, held in memory, and the headers that confine them."""

import hashlib
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # Kept by browsers, but never shown without asking whether it is still what the server has.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


_FILES = {
    file.name: file.read_bytes()
    for file in Path(__file__).parent.iterdir()
    if file.suffix in _TYPES
}
# Of the content: the build of an image may give all files the same time.
_TAGS = {name: f'"{hashlib.sha256(content).hexdigest()[:32]}"' for name, content in _FILES.items()}


def index(request: Request) -> Response:
    """The page itself."""
    return _respond(request, "index.html")


def routes() -> list[Route]:
    """What the page loads."""

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _FILES:
            raise HTTPException(404)
        return _respond(request, name)

    return [Route("/static/{name}", static)]


def _respond(request: Request, name: str) -> Response:
    headers = _HEADERS | {"ETag": _TAGS[name]}
    if _TAGS[name] in request.headers.get("If-None-Match", ""):
        return Response(status_code=304, headers=headers)
    return Response(_FILES[name], headers=headers, media_type=_TYPES[Path(name).suffix])
