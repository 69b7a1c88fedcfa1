"""Pictures of digits in every form that a request may have."""

import base64
import io
import struct
import zlib
from typing import Any

import torch
from PIL import Image


def picture(pixels: torch.Tensor) -> Image.Image:
    """A grayscale image of uint8 [height, width]."""
    return Image.fromarray(pixels.numpy())


def encode(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def png(pixels: torch.Tensor) -> bytes:
    return encode(picture(pixels))


def b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


def dark_on_light(digit: Image.Image, size: tuple[int, int], at: tuple[int, int]) -> Image.Image:
    """A photograph-like picture: the digit's ink in dark blue on a white sheet."""
    ink = digit.point([255 - level for level in range(256)])
    sheet = Image.new("RGB", size, "white")
    sheet.paste(Image.merge("RGB", (ink, ink, ink.point([max(v, 90) for v in range(256)]))), at)
    return sheet


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def dearest_png(side: int = 4096) -> bytes:
    """A bar of black ink on transparent paper, in the kind of PNG that takes longest to decode.

    16-bit RGBA with Paeth's filter: at 4,096 pixels a side 134 MB of pixels in a file of 131 kB.
    """
    # Each byte is its difference from Paeth's prediction: 0 repeats the pixel on the left or, at
    # the left border, the one above.
    as_before = b"\4" + bytes(8 * side)
    begin, end = (b"\4" + bytes(6) + step * 2 + bytes(8 * side - 8) for step in (b"\xff", b"\1"))
    rows = [as_before] * side
    rows[side // 3], rows[side // 2] = begin, end
    deflate = zlib.compressobj(9)
    pixels = b"".join([*map(deflate.compress, rows), deflate.flush()])
    header = struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": pixels, b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks.items())
