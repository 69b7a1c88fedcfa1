"""MNIST: a handwritten digit as a picture, or as its 28x28 numbers."""

import base64
import binascii
from typing import Any

from handler.batching import BatchHandler, Query
from handler.errors import RequestError, UnsupportedMediaTypeError
from handler.images import decode
from handler.payload import Numbers


class MnistHandler(BatchHandler):
    """Takes the bytes of one image, or instances that are base64 images or rows of numbers."""

    def parse_body(self, body: bytes | bytearray) -> Query:
        """One image whatever the content type says: no image format begins as JSON does."""
        if body.lstrip()[:1] in (b"{", b"["):
            return super().parse_body(body)
        try:
            return Query(decode(body))
        except UnsupportedMediaTypeError as error:
            raise UnsupportedMediaTypeError(f"the body is not JSON and {error}") from None

    def parse_instance(self, value: Any, where: str) -> Numbers:
        """`{"b64": "..."}`, an image in base64, or 28 rows of 28 numbers from 0 to 255."""
        if not isinstance(value, dict):
            return super().parse_instance(value, where)
        encoded = value.get("b64")
        if not isinstance(encoded, str):
            raise RequestError(f'{where}: expected {{"b64": "..."}} with an image in base64')
        try:
            image = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError(f"{where}.b64: not valid base64: {error}") from None
        try:
            return decode(image)
        except RequestError as error:
            raise type(error)(f"{where}.b64: {error}") from None
