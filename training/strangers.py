"""Pictures that are no digit: letters, doodles and noise, made with a seed in MNIST's form.

A model should answer them with low confidence. They are an evaluation's: training uses none of
them.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

SIDE = 28
_MIDDLE = (SIDE - 1) / 2

# Without those that a hand writes as a digit, D, I, J, O and Q, S, Y, Z, B, G, and b, g, i, j, l,
# o, q, s, y, z.
LETTERS = "ACEFHKLMNPRTUVWXacdefhkmnprtuvwx"

# Of matplotlib's own files, besides which Pillow has one.
_FONTS = (
    *("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralItalic"),
)
# Of the canvas that strokes are drawn on: four times MNIST's.
_CANVAS = 4 * SIDE

_Canvas = NDArray[np.float64]


def strangers(kind: str, n: int, seed: int = 0) -> NDArray[np.uint8]:
    """Pictures of one kind; the same seed gives the same bytes, and the first of them for less n.

    Args:
        kind: one of `KINDS`.
        n: how many.
        seed: of everything that is random.

    Returns:
        [n, 28, 28], ink bright on 0.

    Raises:
        ValueError: no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"no such kind: {kind!r}; there are {', '.join(KINDS)}")
    number = list(KINDS).index(kind)
    images = np.empty((n, SIDE, SIDE), np.uint8)
    for index in range(n):
        images[index] = KINDS[kind](np.random.default_rng([seed, number, index]))
    return images


def _letter(random: np.random.Generator) -> NDArray[np.uint8]:
    """A letter of some font and stroke width, warped until it might be written by hand."""
    font = _fonts()[random.integers(len(_fonts()))]
    letter = LETTERS[random.integers(len(LETTERS))]
    image = Image.new("L", (_CANVAS, _CANVAS))
    ImageDraw.Draw(image).text(
        (_CANVAS / 2, _CANVAS / 2),
        letter,
        fill=255,
        font=font,
        anchor="mm",
        stroke_width=int(random.integers(0, 4)),
    )
    return _mnist_form(_warped(np.asarray(image, float), random))


@cache
def _fonts() -> list[ImageFont.FreeTypeFont]:
    # Its import takes a second, and only letters need it.
    import matplotlib as mpl

    directory = Path(mpl.get_data_path()) / "fonts" / "ttf"
    size = _CANVAS * 0.6
    own = ImageFont.load_default(size)
    assert isinstance(own, ImageFont.FreeTypeFont)
    return [own, *(ImageFont.truetype(directory / f"{name}.ttf", size) for name in _FONTS)]


def _warped(canvas: _Canvas, random: np.random.Generator) -> _Canvas:
    """Turned by up to 15 degrees, sheared, stretched, and bent as by an unsteady hand."""
    angle, shear = random.uniform(-math.radians(15), math.radians(15)), random.uniform(-0.3, 0.3)
    height, width = random.uniform(0.85, 1.2, 2)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[height, 0], [shear, width]])
    places = np.indices(canvas.shape) - (_CANVAS - 1) / 2
    places = np.tensordot(matrix, places, axes=1) + (_CANVAS - 1) / 2
    # A displacement of a few pixels at each of 6x6 points, with splines between them.
    spline = _splines()
    bend = spline @ random.normal(0, 0.03 * _CANVAS, (2, 6, 6)) @ spline.T
    warped: _Canvas = ndimage.map_coordinates(canvas, places + bend, order=1)
    return warped


@cache
def _splines() -> _Canvas:
    """From 6 numbers in a row to the canvas's, [112, 6], smoothly."""
    matrix: _Canvas = ndimage.zoom(np.eye(6), (_CANVAS / 6, 1), order=3)
    return matrix


def _doodle(random: np.random.Generator) -> NDArray[np.uint8]:
    """A scribble, a star, hatching, a spiral, or several shapes: more strokes than a digit has."""
    image = Image.new("L", (_CANVAS, _CANVAS))
    draw = ImageDraw.Draw(image)
    width = int(random.integers(4, 10))
    doodle = _DOODLES[random.integers(len(_DOODLES))]
    for stroke in doodle(random):
        points = _CANVAS * (0.5 + 0.45 * stroke)
        draw.line([tuple(point) for point in points], fill=255, width=width, joint="curve")
    return _mnist_form(_warped(np.asarray(image, float), random))


def _scribble(random: np.random.Generator) -> list[_Canvas]:
    """A smooth curve through 9 to 16 places."""
    places = random.uniform(-1, 1, (random.integers(9, 17), 2))
    curve = ndimage.zoom(places, (12, 1), order=3)
    return [curve.clip(-1.1, 1.1)]


def _star(random: np.random.Generator) -> list[_Canvas]:
    """A star polygon of 5 to 9 points, or as many rays."""
    n = int(random.integers(5, 10))
    if random.random() < 0.5:
        return [_circle(n)[(np.arange(n + 1) * ((n - 1) // 2)) % n]]
    return [np.stack([ray * 0.1, ray]) for ray in _circle(n)[:n]]


def _hatching(random: np.random.Generator) -> list[_Canvas]:
    """Strokes beside each other, or two such sets across each other, or one zigzag."""
    places = np.linspace(-1, 1, int(random.integers(4, 7)))
    ends = np.ones_like(places)
    strokes = [np.array([[x, -1], [x, 1]]) for x in places]
    kind = random.integers(3)
    if kind == 0:
        return strokes
    if kind == 1:
        return [*strokes, *(stroke[:, ::-1] for stroke in strokes)]
    ends[::2] = -1
    return [np.stack([places, ends], axis=1)]


def _spiral(random: np.random.Generator) -> list[_Canvas]:
    """Three turns or four."""
    turns = np.linspace(0, random.uniform(3, 4), 120)[:, None]
    return [turns / turns.max() * np.hstack([np.cos(math.tau * turns), np.sin(math.tau * turns)])]


def _shapes(random: np.random.Generator) -> list[_Canvas]:
    """Three to five circles, triangles, squares or lines."""

    def shape() -> _Canvas:
        corners = random.choice([1, 3, 4, 40])
        size = random.uniform(0.3, 0.7)
        outline = _circle(corners) if corners > 1 else np.array([[-1.0, 0], [1, 0]])
        angle = random.uniform(0, math.tau)
        cos, sin = math.cos(angle), math.sin(angle)
        place = random.uniform(size - 1, 1 - size, 2)
        turned: _Canvas = size * outline @ np.array([[cos, -sin], [sin, cos]]) + place
        return turned

    return [shape() for _ in range(random.integers(3, 6))]


def _circle(n: int) -> _Canvas:
    """A closed polygon of n corners, [n + 1, 2]."""
    angle = np.arange(n + 1) / n * math.tau
    return np.stack([np.sin(angle), -np.cos(angle)], axis=1)


_DOODLES: tuple[Callable[[np.random.Generator], list[_Canvas]], ...] = (
    *(_scribble, _star, _hatching, _spiral, _shapes),
)


def _noise(random: np.random.Generator) -> NDArray[np.uint8]:
    """Noise without any stroke: of pixels or of patches, gray or black and white, or waves."""
    shape = (SIDE, SIDE)
    kind = random.integers(6)
    values: NDArray[np.floating[Any]]
    if kind == 0:
        values = random.random(shape)
    elif kind == 1:
        values = random.normal(random.uniform(0, 0.7), random.uniform(0.1, 0.5), shape)
    elif kind == 2:
        values = (random.random(shape) < random.uniform(0.05, 0.5)).astype(float)
    elif kind == 3:
        side = int(random.choice([2, 4, 7]))
        values = np.kron(random.random((SIDE // side, SIDE // side)), np.ones((side, side)))
    elif kind == 4:
        values = ndimage.gaussian_filter(random.normal(size=shape), random.uniform(0.7, 2.5))
        values = (values - values.min()) / np.ptp(values)
        if random.random() < 0.5:
            values = (values > 0.5).astype(float)
    else:
        phase = np.tensordot(random.uniform(-1.5, 1.5, 2), np.indices(shape), axes=1)
        values = 0.5 + 0.5 * np.sin(phase + random.uniform(0, math.tau))
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


def _mnist_form(canvas: _Canvas) -> NDArray[np.uint8]:
    """Scaled to fit 20x20 and centred by mass, as LeCun et al. 1998 did with digits.

    Not by the handler's image path, which may take hatching for ruled paper: what pictures are
    measured on does not change with it.
    """
    ink = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    ink = ink.crop(ink.point([255 * (level > 63) for level in range(256)]).getbbox())
    scale = 20 / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    small = np.asarray(ink.resize((width, height), Image.Resampling.BILINEAR), float)
    top, left = (
        min(max(round(_MIDDLE - centre), 0), SIDE - length)
        for centre, length in zip(ndimage.center_of_mass(small), small.shape, strict=True)
    )
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[top : top + height, left : left + width] = np.rint(small * (255 / small.max()))
    return image


KINDS: Mapping[str, Callable[[np.random.Generator], NDArray[np.uint8]]] = MappingProxyType(
    {"letters": _letter, "doodles": _doodle, "noise": _noise}
)
