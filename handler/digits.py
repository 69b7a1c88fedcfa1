"""Bring any picture of a digit to the 28x28 form that MNIST's have."""

import math
from typing import Any

from PIL import Image

from handler.errors import RequestError
from handler.ink import local_ink

SIDE = 28
_INK_BOX = 20

# A digit differs from its paper by at least this many of 256 gray levels.
_MIN_CONTRAST = 32
# Of the darkest ink: less is paper grain or compression noise, and does not count.
_NOISE = 0.1
# Of the darkest ink: the box around the digit holds all that is at least this dark.
_CROP = 0.25
_IN_BOX = [255 * (level >= 255 * _CROP) for level in range(256)]
# Paper is of one gray if this share of the border is within so many of 256 levels of its median.
# Strokes may cross the rest: those of digits of 8x8 pixels, enlarged, cross 43 % of it.
_EVEN_SHARE, _EVEN_LEVELS = 0.57, 4
# Of a side: a stroke that crosses it is wider than a ruled line, and narrower than a table.
_LINE, _TABLE = 0.03, 0.9
# A small digit in the corner of a large page crosses the border as often, and as narrowly as lines.
_MAX_LINES = 3
# At most so many pixels a side are worked on: that takes 3 ms instead of the 30 for 4,096. A stroke
# of one pixel among those keeps a quarter of its contrast.
_WORKING_SIDE = 1024
# Of 256 levels, the darkest ink in the 20x20 box. A stroke of one pixel across 1,024 makes 5; two
# specks of dust, as far apart as 160 times their size, make less.
_MIN_INK = 4

# What the orientation in Exif, 1 to 8, asks for; 1 is upright.
_TO_UPRIGHT: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_mnist(image: Image.Image, orientation: Any = None) -> bytes:
    """Bring a picture to the form that MNIST's authors gave theirs.

    Gray, ink bright on black, scaled to fit 20x20 with its proportions kept, centred by mass in
    28x28 (LeCun et al. 1998, "Gradient-based learning applied to document recognition", III.A).

    Args:
        image: decoded, of any size and mode.
        orientation: as Exif has it.

    Returns:
        uint8, 28 rows of 28.

    Raises:
        RequestError: the image is blank.
    """
    gray = _gray(image)
    working = _working_size(gray)
    ink = local_ink(_eight_bits(gray)) if working is None else _ink(working)
    digit = ink.crop(_box(ink))
    if orientation in _TO_UPRIGHT:
        digit = digit.transpose(_TO_UPRIGHT[orientation])
    scale = _INK_BOX / max(digit.size)
    width, height = (max(1, round(side * scale)) for side in digit.size)
    # Bilinear in Pillow averages over the whole footprint when it shrinks, so thin strokes stay.
    digit = digit.resize((width, height), Image.Resampling.BILINEAR)
    darkest = max(digit.tobytes())
    if darkest < _MIN_INK:
        raise RequestError("the image is blank but for specks")
    digit = digit.point([min(round(level * 255 / darkest), 255) for level in range(256)])
    pixels = digit.tobytes()
    rows = [sum(pixels[y * width : (y + 1) * width]) for y in range(height)]
    columns = [sum(pixels[x::width]) for x in range(width)]
    canvas = Image.new("L", (SIDE, SIDE))
    canvas.paste(digit, (_offset(columns), _offset(rows)))
    return canvas.tobytes()


def _gray(image: Image.Image) -> Image.Image:
    """Opaque and gray, of mode L or, if it has 16 bits, I: alpha is laid on white."""
    if image.mode.startswith("I"):
        return image.convert("I")
    if not image.has_transparency_data:
        return image.convert("L")
    if image.mode not in ("LA", "RGBA"):
        image = image.convert("RGBA")
    paper = Image.new("L", image.size, 255)
    paper.paste(image.convert("L"), mask=image.getchannel("A"))
    return paper


def _working_size(gray: Image.Image) -> Image.Image | None:
    """Reduce a large picture, or crop it to a digit that is small in it; mode L.

    None if its paper is not of one gray.
    """
    factor = math.ceil(max(gray.size) / _WORKING_SIDE)
    reduced = _eight_bits(gray if factor == 1 else gray.reduce(factor))
    if not _is_even(reduced):
        return None
    if factor == 1:
        return reduced
    left, top, right, bottom = _box(_ink(reduced))
    if max(right - left, bottom - top) >= 8 * _INK_BOX:
        return reduced
    # Two reduced pixels around the box belong to the paper.
    margin = 2
    return _eight_bits(
        gray.crop(
            (
                max(left - margin, 0) * factor,
                max(top - margin, 0) * factor,
                min((right + margin) * factor, gray.width),
                min((bottom + margin) * factor, gray.height),
            )
        )
    )


def _eight_bits(gray: Image.Image) -> Image.Image:
    # `convert` alone would clip 16 bits to the lowest 8.
    return gray.point(lambda level: level * (1 / 257)).convert("L") if gray.mode == "I" else gray


def _sides(gray: Image.Image) -> list[bytes]:
    width, height = gray.size
    edges = (
        (0, 0, width, 1),
        (0, height - 1, width, height),
        (0, 0, 1, height),
        (width - 1, 0, width, height),
    )
    return [gray.crop(edge).tobytes() for edge in edges]


def _paper(sides: list[bytes]) -> int:
    border = sorted(b"".join(sides))
    return border[(len(border) - 1) // 2]


def _is_even(gray: Image.Image) -> bool:
    """Whether paper is of one gray, as far as its border tells."""
    darkest, lightest = gray.getextrema()
    assert isinstance(darkest, int)
    if lightest - darkest < _MIN_CONTRAST:
        return True  # and blank
    sides = _sides(gray)
    paper = _paper(sides)
    is_paper = bytes(abs(level - paper) <= _EVEN_LEVELS for level in range(256))
    near = lines = 0
    for side in sides:
        as_paper = side.translate(is_paper)
        near += as_paper.count(1)
        crossings = [len(run) / len(side) for run in as_paper.split(b"\1") if run]
        if len(side) > 1 and max(crossings, default=0) > _TABLE:
            return False
        lines += sum(length < _LINE for length in crossings)
    if lines > _MAX_LINES:
        return False
    return near >= _EVEN_SHARE * sum(map(len, sides))


def _ink(gray: Image.Image) -> Image.Image:
    """Darkness of the ink, 0 to 255, whichever of paper and ink is the lighter.

    The border is paper, of one gray. Ink is whatever differs most from it, on either side.
    """
    paper = _paper(_sides(gray))
    darkest, lightest = gray.getextrema()
    assert isinstance(darkest, int)
    is_dark_on_light = paper - darkest > lightest - paper
    contrast = paper - darkest if is_dark_on_light else lightest - paper
    if contrast < _MIN_CONTRAST:
        raise RequestError("the image is blank")

    scale = (-1 if is_dark_on_light else 1) / contrast
    shares = [(level - paper) * scale for level in range(256)]
    return gray.point([round(255 * min(s, 1)) if s >= _NOISE else 0 for s in shares])


def _box(ink: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the ink."""
    box = ink.point(_IN_BOX).getbbox()
    assert box is not None  # the darkest ink is 255
    return box


def _offset(mass: list[int]) -> int:
    """Where a stretch of such masses begins, so that their centre is the middle of 28 pixels."""
    centre = sum(place * part for place, part in enumerate(mass)) / sum(mass)
    return min(max(round((SIDE - 1) / 2 - centre), 0), SIDE - len(mass))
