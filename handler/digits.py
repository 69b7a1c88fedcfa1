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
_IS_NEAR = [
    bytes(abs(other - level) <= _EVEN_LEVELS for other in range(256)) for level in range(256)
]
# A digit that is cut out along its ink crosses every side. Its paper and ink are the ends of the
# levels, with at least these shares of the border, and no other gray has more than the third share.
# Of 800 such digits 789 are told by that, and of 1,320 photographs 2 are taken for them.
_CUT_OUT_PAPER, _CUT_OUT_INK, _CUT_OUT_OTHER = 0.2, 0.02, 0.2
# Of a side: a stroke that crosses it is wider than a ruled line, and narrower than a table.
_LINE, _TABLE = 0.03, 0.9
# A small digit in the corner of a large page crosses the border as often, and as narrowly as lines.
_MAX_LINES = 3
# A page in a frame fills this share of its box's edge; what is on it fills less of the box than the
# holes of a seven-segment 0, and more than the rounded corners of a bar, which may be a 1, upright
# or lying. A page with nothing on it is wider than a bar. On fewer pixels a side there is no digit.
_PAGE_EDGE, _PAGE_HOLES, _PAGE_WIDTH, _PAGE_SIDE = 0.95, (0.01, 0.25), 0.7, 12
# The second one is what a blurred edge leaves of the first.
_MAX_FRAMES = 2
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


# Left, top, right and bottom.
_Box = tuple[int, int, int, int]


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
    ink = _ink_of(gray)
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


def _ink_of(gray: Image.Image) -> Image.Image:
    """Darkness of the ink, 0 to 255, in a large picture reduced, or cropped to a small digit.

    Raises:
        RequestError: there is no ink.
    """
    factor = math.ceil(max(gray.size) / _WORKING_SIDE)
    reduced = _eight_bits(gray if factor == 1 else gray.reduce(factor))
    page = (0, 0, *reduced.size)
    for frames in range(_MAX_FRAMES + 1):
        paper = _even_paper(reduced)
        if paper is None:
            # Copying 12 megapixels where there is no frame would double the time.
            part = gray.crop(_scaled(page, factor, 0, gray.size)) if frames else gray
            return local_ink(_eight_bits(part))
        ink = _ink(reduced, paper)
        box = _box(ink)
        if frames == _MAX_FRAMES or not _is_page(ink.crop(box).point(_IN_BOX)):
            break
        # The pixels at its edge may be half of the frame.
        inside = (box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1)
        reduced = reduced.crop(inside)
        page = _shifted(inside, page)
    if factor == 1 or max(box[2] - box[0], box[3] - box[1]) >= 8 * _INK_BOX:
        return ink
    # Two reduced pixels around the box belong to the paper.
    part = _eight_bits(gray.crop(_scaled(_shifted(box, page), factor, 2, gray.size)))
    return _ink(part, _median(b"".join(_sides(part))))


def _shifted(box: _Box, by: _Box) -> _Box:
    """A box in a part of a picture, in the picture."""
    left, top = by[:2]
    return box[0] + left, box[1] + top, box[2] + left, box[3] + top


def _scaled(box: _Box, factor: int, margin: int, size: tuple[int, int]) -> _Box:
    """A box of a reduced picture in the picture itself, with so many reduced pixels around it."""
    left, top, right, bottom = box
    return (
        max(left - margin, 0) * factor,
        max(top - margin, 0) * factor,
        min((right + margin) * factor, size[0]),
        min((bottom + margin) * factor, size[1]),
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


def _median(levels: bytes) -> int:
    return sorted(levels)[(len(levels) - 1) // 2]


def _even_paper(gray: Image.Image) -> int | None:
    """The level of the paper if it is of one gray, as far as the border tells, or else None."""
    extremes = _extremes(gray)
    sides = _sides(gray)
    border = b"".join(sides)
    paper = _median(border)
    if extremes[1] - extremes[0] < _MIN_CONTRAST:
        return paper  # and the picture is blank
    crossings = [length for side in sides if len(side) > 1 for length in _crossings(side, paper)]
    if max(crossings, default=0) <= _TABLE and _is_paper(paper, sides, _EVEN_SHARE):
        return paper
    top, bottom = sides[:2]
    corners = bytes([top[0], top[-1], bottom[0], bottom[-1]])
    paper = max(extremes, key=lambda level: (_near(corners, level), _near(border, level)))
    is_paper = _is_paper(paper, sides, _CUT_OUT_PAPER)
    return paper if is_paper and _is_cut_out(paper, extremes, sides) else None


def _is_paper(level: int, sides: list[bytes], least: float) -> bool:
    """Whether at least that share of the border is of one level, and no lines cross the rest."""
    lines = sum(length < _LINE for side in sides for length in _crossings(side, level))
    near = sum(_near(side, level) for side in sides)
    return lines <= _MAX_LINES and near >= least * sum(map(len, sides))


def _is_cut_out(paper: int, extremes: tuple[int, int], sides: list[bytes]) -> bool:
    """Whether ink crosses all sides, which it may fill, and there is nothing else but paper."""
    border = b"".join(sides)
    slack = round(_NOISE * (extremes[1] - extremes[0]))
    low, high = extremes[0] + slack, extremes[1] - slack
    ink = sum(level >= high if paper == extremes[0] else level <= low for level in border)
    others = bytes(level for level in border if low < level < high)
    most = max((_near(others, level) for level in set(others)), default=0)
    return (
        all(_crossings(side, paper) for side in sides)
        and ink >= _CUT_OUT_INK * len(border)
        and most <= _CUT_OUT_OTHER * len(border)
    )


def _crossings(side: bytes, level: int) -> list[float]:
    """How long what is not of one level is, each as a share of the side."""
    return [len(run) / len(side) for run in side.translate(_IS_NEAR[level]).split(b"\1") if run]


def _is_page(box: Image.Image) -> bool:
    """Whether what differs from a picture's border is a page with something on it.

    Args:
        box: around it, mode L, 255 where it differs and 0 elsewhere.
    """
    if min(box.size) < _PAGE_SIDE:
        return False
    edge = b"".join(_sides(box))
    holes = box.histogram()[0] / (box.width * box.height)
    is_bar = holes <= _PAGE_HOLES[0] and min(box.size) < _PAGE_WIDTH * max(box.size)
    is_full = edge.count(255) >= _PAGE_EDGE * len(edge)
    return is_full and holes < _PAGE_HOLES[1] and not is_bar


def _near(levels: bytes, level: int) -> int:
    """How many differ little from one."""
    return levels.translate(_IS_NEAR[level]).count(1)


def _ink(gray: Image.Image, paper: int) -> Image.Image:
    """Darkness of the ink, 0 to 255, whichever of paper and ink is the lighter.

    Ink is whatever differs most from the paper, on either side.

    Raises:
        RequestError: nothing differs enough.
    """
    darkest, lightest = _extremes(gray)
    is_dark_on_light = paper - darkest > lightest - paper
    contrast = paper - darkest if is_dark_on_light else lightest - paper
    if contrast < _MIN_CONTRAST:
        raise RequestError("the image is blank")

    scale = (-1 if is_dark_on_light else 1) / contrast
    shares = [(level - paper) * scale for level in range(256)]
    return gray.point([round(255 * min(s, 1)) if s >= _NOISE else 0 for s in shares])


def _extremes(gray: Image.Image) -> tuple[int, int]:
    """The darkest and the lightest level of mode L."""
    darkest, lightest = gray.getextrema()
    assert isinstance(darkest, int)
    assert isinstance(lightest, int)
    return darkest, lightest


def _box(ink: Image.Image) -> _Box:
    """Left, top, right and bottom of the ink."""
    box = ink.point(_IN_BOX).getbbox()
    assert box is not None  # the darkest ink is 255
    return box


def _offset(mass: list[int]) -> int:
    """Where a stretch of such masses begins, so that their centre is the middle of 28 pixels."""
    centre = sum(place * part for place, part in enumerate(mass)) / sum(mass)
    return min(max(round((SIDE - 1) / 2 - centre), 0), SIDE - len(mass))
