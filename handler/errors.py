"""What a request can be answered instead of predictions, and the body that says so."""

import json


class RequestError(Exception):
    """The request is malformed: 400. Subclasses are what else can be wrong."""

    code = 400
    phrase = "Bad Request"
    type = "BadRequestException"

    def body(self) -> bytes:
        """The error as TorchServe's frontend writes its own: JSON with code, type and message."""
        error = {"code": self.code, "type": self.type, "message": str(self)}
        return json.dumps(error).encode()


class PayloadTooLargeError(RequestError):
    """The body, an image or the number of instances is over its limit: 413."""

    code = 413
    phrase = "Request Entity Too Large"
    type = "PayloadTooLargeException"


class UnsupportedMediaTypeError(RequestError):
    """The body is not an image of a format that is accepted: 415."""

    code = 415
    phrase = "Unsupported Media Type"
    type = "UnsupportedMediaTypeException"


class OutOfMemoryError(RequestError):
    """The batch does not fit into the device's memory: 507, as TorchServe itself says it."""

    code = 507
    phrase = "Insufficient Storage"
    type = "OutOfMemoryException"


class HandlerError(RequestError):
    """A defect of the handler or the model, and not of the request: 500."""

    code = 500
    phrase = "Internal Server Error"
    type = "InternalServerException"
