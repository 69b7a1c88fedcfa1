"""Error responses and their JSON bodies."""

import json
from typing import Any


class RequestError(Exception):
    """The request is malformed: 400. Subclasses are the other ways in which one can fail.

    Attributes:
        code: HTTP status.
        phrase: its reason phrase.
        type: exception type in the body, named as TorchServe names its own.
        reason: label in `inference_rejected_total`.
    """

    code = 400
    phrase = "Bad Request"
    type = "BadRequestException"
    reason = "malformed"

    @property
    def headers(self) -> dict[str, str]:
        """Response headers besides the content type."""
        return {}

    def body(self, is_v2: bool = False, **more: Any) -> bytes:
        """JSON with code, type and message, as TorchServe's frontend writes its own errors.

        The Open Inference Protocol calls the message `error`.
        """
        error = {"code": self.code, "type": self.type, "error" if is_v2 else "message": str(self)}
        return json.dumps(error | more).encode()


class PayloadTooLargeError(RequestError):
    """The body, an image, the pixels in all or the number of instances is over its limit: 413."""

    code = 413
    phrase = "Request Entity Too Large"
    type = "PayloadTooLargeException"
    reason = "too_large"


class UnsupportedMediaTypeError(RequestError):
    """The body is compressed, or not an image of a supported format: 415."""

    code = 415
    phrase = "Unsupported Media Type"
    type = "UnsupportedMediaTypeException"
    reason = "unsupported_media_type"


class OverloadedError(RequestError):
    """The worker has no time for this request now: 503, with `Retry-After`.

    Args:
        message: for the client.
        retry_after: whole seconds until the request is worth sending again.
    """

    code = 503
    phrase = "Service Unavailable"
    type = "ServiceUnavailableException"
    reason = "overload"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """When to come again."""
        return {"Retry-After": str(self.retry_after)}


class OutOfMemoryError(RequestError):
    """The batch does not fit into the device's memory: 507, TorchServe's own status for it."""

    code = 507
    phrase = "Insufficient Storage"
    type = "OutOfMemoryException"
    reason = "out_of_memory"


class HandlerError(RequestError):
    """A defect of the handler or the model, not of the request: 500."""

    code = 500
    phrase = "Internal Server Error"
    type = "InternalServerException"
    reason = "handler_failure"


def all_errors() -> list[type[RequestError]]:
    """Every error class that a handler answers with."""
    return [RequestError, *RequestError.__subclasses__()]
