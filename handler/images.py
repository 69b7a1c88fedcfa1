"""From the bytes of any picture of a digit to the 28x28 form that MNIST has."""

import io

import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from handler.errors import PayloadTooLargeError, RequestError, UnsupportedMediaTypeError

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

# `decode` checks each side before any pixel is decoded, which is stricter than Pillow's own limit
# and, unlike it, neither warns nor stops other sizes.
Image.MAX_IMAGE_PIXELS = None


def decode(data: bytes | bytearray) -> torch.Tensor:
    """Decode one picture and bring it to MNIST's form.

    A 28x28 grayscale picture is returned as it is.

    Args:
        data: PNG, JPEG, BMP, GIF (its first frame) or WebP.

    Returns:
        uint8 [28, 28], ink bright on 0.

    Raises:
        UnsupportedMediaTypeError: none of those formats.
        PayloadTooLargeError: over 4,096 pixels a side.
        RequestError: truncated, corrupt, or blank.
    """
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
    if image.size == (SIDE, SIDE) and image.mode in ("1", "L") and not image.has_transparency_data:
        pixels = _pixels(image if image.mode == "L" else image.convert("L"))
        if bool((pixels == pixels[0, 0]).all()):
            raise RequestError("the image is blank")
        return pixels
    return to_mnist(image)


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
