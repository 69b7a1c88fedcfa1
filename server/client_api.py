"""What clients are answered without a model: the V1 and V2 protocols' metadata and health."""

from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server import metadata, page
from server.watcher import ModelState


class Service(Protocol):
    """What these routes show."""

    def models(self) -> list[ModelState]:
        """Each model, and why it cannot answer if it cannot; no call waits for anything."""

    def liveness(self) -> tuple[int, dict[str, Any]]:
        """Status and report of `/livez`."""

    def readiness(self) -> tuple[int, dict[str, Any]]:
        """Status and report of `/readyz`."""


def routes(service: Service) -> list[Route]:
    """Every route but those that a worker answers, which the front door sends there."""
    # --- The Open Inference Protocol.

    async def server_metadata(_: Request) -> Response:
        return JSONResponse(metadata.SERVER)

    def server_live(_: Request) -> Response:
        is_live = service.liveness()[0] == 200
        return JSONResponse({"live": is_live}, 200 if is_live else 503)

    def server_ready(_: Request) -> Response:
        is_ready = service.readiness()[0] == 200
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    async def model_metadata(request: Request) -> Response:
        models = service.models()
        archive = metadata.find_model(models, **request.path_params).archive
        versions = metadata.versions_of(models, archive.name)
        return JSONResponse(metadata.model_metadata(archive, versions))

    async def model_ready(request: Request) -> Response:
        return _readiness(metadata.find_model(service.models(), **request.path_params))

    # --- V1.

    async def list_models(_: Request) -> Response:
        names = dict.fromkeys(state.archive.name for state in service.models())
        return JSONResponse({"models": list(names)})

    # --- The root.

    def root(request: Request) -> Response:
        """V1's liveness; browsers, which alone ask for HTML by name, get the page."""
        if "text/html" in request.headers.get("Accept", ""):
            response = page.index(request)
        else:
            is_alive = service.liveness()[0] == 200
            status = "alive" if is_alive else "dead"
            response = JSONResponse({"status": status}, 200 if is_alive else 503)
        response.headers["Vary"] = "Accept"
        return response

    model = "/v2/models/{name}"
    version = model + "/versions/{version}"
    return [
        Route("/", root),
        Route("/v1/models", list_models),
        Route("/v1/models/{name}", model_ready),
        Route("/v2", server_metadata),
        Route("/v2/", server_metadata),
        Route("/v2/health/live", server_live),
        Route("/v2/health/ready", server_ready),
        Route(model, model_metadata),
        Route(version, model_metadata),
        Route(f"{model}/ready", model_ready),
        Route(f"{version}/ready", model_ready),
    ]


def _readiness(state: ModelState) -> Response:
    """200 or 503: tritonclient and KServe's client look at the status, V1's also at the body."""
    document: dict[str, Any] = {"name": state.archive.name, "ready": state.reason is None}
    if state.reason is not None:
        document["reason"] = state.reason
    return JSONResponse(document, 200 if state.reason is None else 503)
