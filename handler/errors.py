"""What a request can be answered instead of predictions, and the body that says so."""

import json
from typing import Any


class RequestError(Exception):
    """The request is malformed: 400. Subclasses are what else can be wrong.

    Attributes:
        code: HTTP status.
        phrase: its reason phrase.
        type: of the error in the body, named as TorchServe names its own.
        reason: the label in `inference_rejected_total`.
    """

    code = 400
    phrase = "Bad Request"
    type = "BadRequestException"
    reason = "malformed"

    def body(self, **more: Any) -> bytes:
        """The error as TorchServe's frontend writes its own: JSON with code, type and message."""
        error = {"code": self.code, "type": self.type, "message": str(self)}
        return json.dumps(error | more).encode()


class PayloadTooLargeError(RequestError):
    """The body, an image or the number of instances is over its limit: 413."""

    code = 413
    phrase = "Request Entity Too Large"
    type = "PayloadTooLargeException"
    reason = "too_large"


class UnsupportedMediaTypeError(RequestError):
    """The body is not an image of a format that is accepted: 415."""

    code = 415
    phrase = "Unsupported Media Type"
    type = "UnsupportedMediaTypeException"
    reason = "unsupported_media_type"


class OutOfMemoryError(RequestError):
    """The batch does not fit into the device's memory: 507, as TorchServe itself says it."""

    code = 507
    phrase = "Insufficient Storage"
    type = "OutOfMemoryException"
    reason = "out_of_memory"


class HandlerError(RequestError):
    """A defect of the handler or the model, and not of the request: 500."""

    code = 500
    phrase = "Internal Server Error"
    type = "InternalServerException"
    reason = "handler_failure"


def all_errors() -> list[type[RequestError]]:
    """Every kind of error that a handler answers with."""
    return [RequestError, *RequestError.__subclasses__()]
