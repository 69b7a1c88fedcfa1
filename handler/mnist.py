"""MNIST: a handwritten digit as a picture, or as its 28x28 numbers."""

import base64
import binascii
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from handler.batching import BatchHandler, Query
from handler.errors import PayloadTooLargeError, RequestError, UnsupportedMediaTypeError
from handler.images import MAX_SIDE, Picture, decode_plain
from handler.payload import Numbers

# In all images of a request: one of the largest size.
MAX_PIXELS = MAX_SIDE**2
# Requests up to this work are always answered: 4 ms, or 0.3 s for a batch of 64 of them. A 512x512
# RGBA image is that much. A digit on uneven paper takes 10 to 18 ms more to find (25 for noise),
# which no header tells: then a batch takes up to 1.4 s.
_CHEAP = 1 << 20


class MnistHandler(BatchHandler):
    """Takes the bytes of one image, or instances that are base64 images or rows of numbers."""

    def parse_body(self, body: bytes | bytearray) -> Query:
        """Read an image whatever the content type says: none begins as JSON does."""
        if body.lstrip()[:1] in (b"{", b"["):
            return super().parse_body(body)
        numbers = decode_plain(body)
        if numbers is None:
            try:
                picture = Picture(body)
            except UnsupportedMediaTypeError as error:
                raise UnsupportedMediaTypeError(f"the body is not JSON and {error}") from None
            with self._allowed(picture.work):
                numbers = picture.decode()
        return Query(numbers)

    def parse_instances(self, values: Sequence[Any]) -> list[Numbers]:
        """Read each as `{"b64": "..."}`, an image in base64, or 28 rows of 28 numbers 0 to 255.

        All headers are read, and what the images cost is known, before any pixel is decoded.
        """
        parts: list[Numbers | Picture] = []
        pixels = work = 0
        for index, value in enumerate(values):
            where = f"instances[{index}]"
            if not isinstance(value, dict):
                parts.append(self.parse_instance(value, where))
                continue
            data = _from_base64(value, where)
            try:
                part = decode_plain(data) or Picture(data)
            except RequestError as error:
                raise type(error)(f"{where}.b64: {error}") from None
            parts.append(part)
            if isinstance(part, Picture):
                pixels += part.pixels
                work += part.work
                if pixels > MAX_PIXELS:
                    raise PayloadTooLargeError(
                        f"{where}.b64: the images up to this one have {pixels} pixels; the limit "
                        f"of a request is {MAX_PIXELS}"
                    )
                if work > _CHEAP and len(parts) % 64 == 0:
                    # Reading the headers of 1,024 images takes 10 ms. Most requests that are over
                    # their budget are so within 64, and should be told that first.
                    self.allowance.check()
        with self._allowed(work):
            return [
                _decode(part, f"instances[{index}].b64") if isinstance(part, Picture) else part
                for index, part in enumerate(parts)
            ]

    def _allowed(self, work: int) -> AbstractContextManager[None]:
        if work <= _CHEAP:
            return nullcontext()
        return self.allowance.spend()


def _from_base64(value: dict[str, Any], where: str) -> bytes:
    encoded = value.get("b64")
    if not isinstance(encoded, str):
        raise RequestError(f'{where}: expected {{"b64": "..."}} with an image in base64')
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{where}.b64: not valid base64: {error}") from None


def _decode(picture: Picture, where: str) -> Numbers:
    try:
        return picture.decode()
    except RequestError as error:
        raise type(error)(f"{where}: {error}") from None
