"""Pictures of digits in every form that a request may have."""

import base64
import io
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
