"""What a request can be refused for, and the body that says so."""

import json


class RequestError(Exception):
    """The request is malformed: 400. Subclasses are the other refusals a client can mend."""

    code = 400
    phrase = "Bad Request"
    type = "BadRequestException"

    def body(self) -> bytes:
        """The error as TorchServe's frontend writes its own: JSON with code, type and message."""
        return error_body(self.code, self.type, str(self))


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


def error_body(code: int, type_: str, message: str) -> bytes:
    """Serialise an error, without a trailing newline."""
    return json.dumps({"code": code, "type": type_, "message": message}).encode()
