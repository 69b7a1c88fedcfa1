"""From the bytes of any picture of a digit to the 28x28 form that MNIST has."""

import io
import struct
import zlib
from array import array

import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from handler.errors import PayloadTooLargeError, RequestError, UnsupportedMediaTypeError
from handler.payload import Numbers

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
MAX_SIDE = 4096
SIDE = 28
_INK_BOX = 20

# A digit is told from its paper by at least this many of 256 gray levels.
_MIN_CONTRAST = 32
# Of the darkest ink: less is paper grain or compression noise, and does not count.
_NOISE = 0.1
# Of the darkest ink: the box around the digit holds all that is at least this dark.
_CROP = 0.25

_PNG_CHUNK = struct.Struct(">I4s")


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return _PNG_CHUNK.pack(len(content), kind) + content + struct.pack(">I", checksum)


# Depth 8, gray; deflate, its only filter method, not interlaced.
_PNG_HEADER = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
_PNG_BEGIN = b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", _PNG_HEADER)
_PNG_END = _png_chunk(b"IEND", b"")

# `_open` checks each side before any pixel is decoded, which is stricter than Pillow's own limit
# and, unlike it, neither warns nor stops other sizes.
Image.MAX_IMAGE_PIXELS = None


def decode(data: bytes | bytearray) -> Numbers:
    """Decode one picture and bring it to MNIST's form.

    A 28x28 grayscale picture is returned as it is.

    Args:
        data: PNG, JPEG, BMP, GIF (its first frame) or WebP.

    Returns:
        uint8, 28 rows of 28, ink bright on 0.

    Raises:
        UnsupportedMediaTypeError: none of those formats.
        PayloadTooLargeError: over 4,096 pixels a side.
        RequestError: truncated, corrupt, or blank.
    """
    image = _plain_png(data)
    if image is None:
        image = _open(data)
    if image.size == (SIDE, SIDE) and image.mode in ("1", "L") and not image.has_transparency_data:
        pixels = (image if image.mode == "L" else image.convert("L")).tobytes()
        if pixels.count(pixels[0]) == len(pixels):
            raise RequestError("the image is blank")
        return array("B", pixels)
    return array("B", to_mnist(image).flatten().tolist())


def _plain_png(data: bytes | bytearray) -> Image.Image | None:
    """A PNG of 28x28, 8-bit gray, not interlaced, whose pixels are one chunk; None for any other.

    Such is what encoders make of an MNIST digit. Pillow takes half as long for its pixels alone as
    for the file around them too.
    """
    end = len(data) - len(_PNG_END)
    if not (data.startswith(_PNG_BEGIN) and data.endswith(_PNG_END)):
        return None
    length, kind = _PNG_CHUNK.unpack_from(data, len(_PNG_BEGIN))
    begin = len(_PNG_BEGIN) + _PNG_CHUNK.size
    if kind != b"IDAT" or begin + length + 4 != end:
        return None
    if zlib.crc32(data[begin - 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
        return None
    try:
        return Image.frombytes("L", (SIDE, SIDE), data[begin : end - 4], "zip", ("L", 0))
    except ValueError:
        return None


def _open(data: bytes | bytearray) -> Image.Image:
    """Any picture, with its pixels decoded."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise UnsupportedMediaTypeError(
            f"not a supported image: expected one of {', '.join(FORMATS)}"
        ) from None
    except Exception as error:  # noqa: BLE001 (after the right magic a header can fail in any way)
        raise RequestError(f"the image cannot be read: {error}") from None
    if max(image.size) > MAX_SIDE:
        raise PayloadTooLargeError(
            f"the image is {image.width}x{image.height}; the limit is {MAX_SIDE} pixels a side"
        )
    try:
        image.load()
    except Exception as error:  # noqa: BLE001 (decoders raise nearly every built-in exception)
        raise RequestError(f"the {image.format} image cannot be decoded: {error}") from None
    return image


def to_mnist(image: Image.Image) -> torch.Tensor:
    """Bring a picture to the form that MNIST's authors gave theirs.

    Gray, ink bright on black, scaled to fit 20x20 with its proportions kept, centred by mass in
    28x28 (LeCun et al. 1998, "Gradient-based learning applied to document recognition", III.A).

    Args:
        image: a decoded picture of any size and mode.

    Returns:
        uint8 [28, 28].

    Raises:
        RequestError: there is no ink.
    """
    ink = _ink(_gray(image))
    box = ink.point([255 * (level >= 255 * _CROP) for level in range(256)]).getbbox()
    assert box is not None  # the darkest ink is 255 by construction
    digit = ink.crop(box)
    scale = _INK_BOX / max(digit.size)
    width, height = (max(1, round(side * scale)) for side in digit.size)
    # Bilinear in Pillow averages over the whole footprint when it shrinks, so thin strokes stay.
    small = _pixels(digit.resize((width, height), Image.Resampling.BILINEAR)).double()
    small *= 255 / small.max().clamp_min(1)
    mass = small.sum()
    top = _offset(float(small.sum(dim=1) @ torch.arange(height).double() / mass), height)
    left = _offset(float(small.sum(dim=0) @ torch.arange(width).double() / mass), width)
    canvas = torch.zeros((SIDE, SIDE), dtype=torch.uint8)
    canvas[top : top + height, left : left + width] = small.round()
    return canvas


def _pixels(gray: Image.Image) -> torch.Tensor:
    """uint8 [height, width] of an 8-bit gray image."""
    flat = torch.frombuffer(bytearray(gray.tobytes()), dtype=torch.uint8)
    return flat.reshape(gray.height, gray.width)


def _gray(image: Image.Image) -> Image.Image:
    """Upright, opaque and 8-bit gray: a photo's orientation applied, alpha laid on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        # 16-bit grayscale, which `convert` would clip to its lowest 8 bits.
        return image.convert("I").point(lambda level: level * (1 / 257)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L")


def _ink(gray: Image.Image) -> Image.Image:
    """Darkness of the ink, 0 to 255, whichever of paper and ink is the lighter.

    The border is paper. Ink is whatever lies furthest from it, on either side.
    """
    pixels = _pixels(gray)
    border = torch.cat([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    paper = int(border.median())
    darkest, lightest = int(pixels.min()), int(pixels.max())
    is_dark_on_light = paper - darkest > lightest - paper
    contrast = paper - darkest if is_dark_on_light else lightest - paper
    if contrast < _MIN_CONTRAST:
        raise RequestError("the image is blank")

    def strength(level: int) -> int:
        share = (paper - level if is_dark_on_light else level - paper) / contrast
        return round(255 * min(share, 1)) if share >= _NOISE else 0

    return gray.point([strength(level) for level in range(256)])


def _offset(centre: float, length: int) -> int:
    """Where a stretch of `length` begins so that its `centre` of mass is the middle of 28."""
    return min(max(round((SIDE - 1) / 2 - centre), 0), SIDE - length)
