"""The Open Inference Protocol over gRPC.

Health and metadata are answered here. An inference becomes an HTTP request to the front door, so
that it waits in the same queue as all others and under the same limits.
"""

import asyncio
import functools
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

import grpc
import httpx

from server import client_api, metadata
from server.door import MAX_BODY
from server.protocol import inference_pb2 as messages
from server.protocol.inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)
from server.tensors import Body, TensorError, request_body, response_message

# A body of the largest size, and the names around it.
_MAX_MESSAGE = MAX_BODY + (64 << 10)
# In the drain, when the door accepts no more: few, as nothing else keeps them from TorchServe's
# heap.
_WITHOUT_DOOR = 4
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_JSON_LENGTH = "Inference-Header-Content-Length"
_Call = Callable[[Any, Any, Any], Coroutine[Any, Any, Any]]


class Service(client_api.Service, Protocol):
    """What is shown, and asked for inferences."""

    def inference_socket(self) -> Path | None:
        """TorchServe's, or None before it is ready."""


class GrpcServer:
    """Serves on a Unix socket, in the event loop of its caller.

    Args:
        service: whose models and health it shows.
        listener: path of the socket, which is made here.
        door: path of the front door's socket for inferences.

    Attributes:
        started: whether it answers.
        should_exit: set to end `serve`.
    """

    def __init__(self, service: Service, listener: Path, door: Path) -> None:
        self._service = service
        self._listener = listener
        self._door = door
        self.started = self.should_exit = False

    async def serve(self) -> None:
        """Answer until `should_exit`."""
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", _MAX_MESSAGE)])
        inference = _Inference(self._service, self._door)
        add_GRPCInferenceServiceServicer_to_server(inference, server)
        server.add_insecure_port(f"unix:{self._listener}")
        await server.start()
        self.started = True
        while not self.should_exit:  # noqa: ASYNC110 (another thread sets it)
            await asyncio.sleep(0.1)
        await server.stop(grace=1.0)
        await inference.close()


class _CallError(Exception):
    """A call fails with this status; the message is the client's."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def _with_status(call: _Call) -> _Call:
    """Have a call end with the status that its error stands for."""

    @functools.wraps(call)
    async def wrapper(self: Any, request: Any, context: Any) -> Any:
        try:
            return await call(self, request, context)
        except _CallError as error:
            await context.abort(error.code, str(error))
        except metadata.UnknownModelError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))

    return wrapper


class _Inference(GRPCInferenceServiceServicer):
    def __init__(self, service: Service, door: Path) -> None:
        self._service = service
        self._client = _client(door)
        self._without_door = asyncio.Semaphore(_WITHOUT_DOOR)

    async def close(self) -> None:
        await self._client.aclose()

    async def ServerLive(self, *_: Any) -> messages.ServerLiveResponse:
        return messages.ServerLiveResponse(live=self._service.liveness()[0] == 200)

    async def ServerReady(self, *_: Any) -> messages.ServerReadyResponse:
        return messages.ServerReadyResponse(ready=self._service.readiness()[0] == 200)

    async def ServerMetadata(self, *_: Any) -> messages.ServerMetadataResponse:
        return messages.ServerMetadataResponse(**metadata.SERVER)

    @_with_status
    async def ModelReady(
        self, request: messages.ModelReadyRequest, _: Any
    ) -> messages.ModelReadyResponse:
        state = metadata.find_model(self._service.models(), request.name, request.version)
        return messages.ModelReadyResponse(ready=state.reason is None)

    @_with_status
    async def ModelMetadata(
        self, request: messages.ModelMetadataRequest, _: Any
    ) -> messages.ModelMetadataResponse:
        models = self._service.models()
        archive = metadata.find_model(models, request.name, request.version).archive
        versions = metadata.versions_of(models, archive.name)
        return messages.ModelMetadataResponse(**metadata.model_metadata(archive, versions))

    @_with_status
    async def ModelInfer(
        self, request: messages.ModelInferRequest, context: Any
    ) -> messages.ModelInferResponse:
        models = self._service.models()
        archive = metadata.find_model(models, request.model_name, request.model_version).archive
        try:
            body = request_body(request)
        except TensorError as error:
            raise _CallError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        if len(body.content) > MAX_BODY:
            text = f"the request has {len(body.content)} bytes over HTTP; the limit is {MAX_BODY}"
            raise _CallError(grpc.StatusCode.INVALID_ARGUMENT, text)
        # As the door makes them of V2's requests.
        headers = {"X-Protocol": "v2"}
        headers |= {k: v for k, v in context.invocation_metadata() if k == "x-request-id"}
        if body.json_length is not None:
            headers[_JSON_LENGTH] = str(body.json_length)
        answer = await self._ask(f"/predictions/{archive.key}", body.content, headers)
        if answer.status_code != 200:
            raise _CallError(
                _CODES.get(answer.status_code, grpc.StatusCode.UNKNOWN), _message(answer)
            )
        length = answer.headers.get(_JSON_LENGTH, "")
        content = Body(
            answer.content, int(length) if length.isdecimal() and len(length) < 10 else None
        )
        try:
            return response_message(content, raw=bool(request.raw_input_contents))
        except TensorError as error:
            raise _CallError(grpc.StatusCode.INTERNAL, str(error)) from None

    async def _ask(self, path: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        """Send an inference through the door, or past one that accepts no more."""
        try:
            return await self._client.post(path, content=body, headers=headers)
        except httpx.TransportError:
            socket = self._service.inference_socket()
        if socket is None:
            raise _CallError(grpc.StatusCode.UNAVAILABLE, "the models are loading")
        try:
            async with self._without_door, _client(socket) as client:
                return await client.post(path, content=body, headers=headers)
        except httpx.TransportError as error:
            text = f"the request was lost ({error!r}); send it again"
            raise _CallError(grpc.StatusCode.UNAVAILABLE, text) from None


def _client(socket: Path) -> httpx.AsyncClient:
    # Idle connections would keep a door that is to end. The door bounds how long an answer takes.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=limits)
    return httpx.AsyncClient(transport=transport, base_url="http://door", timeout=None)  # noqa: S113


def _message(answer: httpx.Response) -> str:
    """What an error says, in the form of V2, or of the door or TorchServe."""
    try:
        document = json.loads(answer.content)
        return str(document.get("error") or document["message"])
    except (ValueError, LookupError, AttributeError):
        return f"status {answer.status_code}: {answer.text:.200}"
