"""Photographs of handwritten digits, made from MNIST's images with a seed.

Each is what a telephone takes of a digit on a sheet or on a board: strokes of some size at some
place, in uneven light and with shadows, on paper with grain, ruled lines and an edge, out of focus
by a little, and through JPEG. The accuracy on them says how well the handler's image path brings a
picture to MNIST's form.
"""

import io
import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Ink = Literal["dark", "light"]
_Plane = NDArray[np.float32]

# What a photograph may have, and how often: the gradient includes vignetting.
CHANCES: Mapping[str, float] = MappingProxyType(
    {"gradient": 0.8, "shadow": 0.5, "grain": 0.9, "lines": 0.4, "border": 0.3, "jpeg": 0.9}
)

# Sides in pixels; one photograph in 50 has up to the larger number.
_SIDES = (200, 1600)
_LARGEST = 3000
# What a request may have.
_MAX_BYTES = 1 << 20
# Of full light: the least that is left where gradient and shadows meet.
_LEAST_LIGHT = 0.28


def photographs(
    x: torch.Tensor, seed: int, ink: Ink = "dark", chances: Mapping[str, float] = CHANCES
) -> Iterator[bytes]:
    """Photographs of digits, each a JPEG file.

    The same digit at the same place in `x` gives the same photograph, whatever the others are.

    Args:
        x: MNIST's images, uint8 [n, 28, 28].
        seed: of everything that is random.
        ink: dark on light paper, or light on a dark board.
        chances: of each disturbance, 0 to 1; one that is not named is not applied.

    Yields:
        n files, each of 200 to 3,000 pixels a side and at most 1 MiB.

    Raises:
        ValueError: `chances` names a disturbance that does not exist.
    """
    unknown = sorted(chances.keys() - CHANCES.keys())
    if unknown:
        raise ValueError(f"no such disturbance: {unknown[0]!r}; there are {', '.join(CHANCES)}")
    for index, pixels in enumerate(x.numpy()):
        random = np.random.default_rng([seed, index, ink == "light"])
        # Drawn for all of them, so that one photograph differs from another by these alone.
        drawn = {name: random.random() < chances.get(name, 0) for name in CHANCES}
        yield _photograph(pixels, random, ink, drawn.__getitem__)


def _photograph(
    pixels: NDArray[np.uint8],
    random: np.random.Generator,
    ink: Ink,
    has: Callable[[str], bool],
) -> bytes:
    long = math.exp(random.uniform(math.log(_SIDES[0]), math.log(_SIDES[1])))
    if random.random() < 0.02:
        long = random.uniform(_SIDES[1], _LARGEST)
    short = max(long * random.uniform(0.6, 1), _SIDES[0])
    height, width = map(round, random.permutation([long, short]))
    strokes, (top, left, side) = _strokes(pixels, random, height, width)

    paper, digit, lines, beyond = _tones(random, ink)
    scene = np.broadcast_to(paper, (height, width, 3)).astype(np.float32)
    if has("lines"):
        scene += _ruling(random, height, width, side)[..., None] * (lines - paper)
    scene += strokes[..., None] * (digit - scene)
    if has("border"):
        outside = _outside(random, height, width, (top, left, side))
        scene += outside[..., None] * (beyond - scene)
    if has("grain"):
        # Fibres of the paper, or dust on the board, of one to three pixels.
        fibres = ndimage.gaussian_filter(_noise(random, height, width), random.uniform(0.5, 1.5))
        scene *= 1 + (fibres * random.uniform(0.01, 0.05) / fibres.std())[..., None]
    light = np.ones((height, width), np.float32)
    if has("gradient"):
        light *= _gradient(random, height, width)
    if has("shadow"):
        for _ in range(random.integers(1, 4)):
            light *= _shadow(random, height, width)
    scene *= np.maximum(light, _LEAST_LIGHT)[..., None]
    # A telephone exposes so that the brightest is nearly white; a glance at every fourth pixel.
    scene *= random.uniform(0.65, 1) / scene[::4, ::4].max()
    if has("grain"):
        # A sensor's noise.
        scene += random.uniform(0.005, 0.03) * _noise(random, height, width)[..., None]
    image = Image.fromarray((scene.clip(0, 1) * 255).round().astype(np.uint8))
    return _jpeg(image, int(random.integers(40, 91)) if has("jpeg") else 95)


def _tones(random: np.random.Generator, ink: Ink) -> tuple[_Plane, _Plane, _Plane, _Plane]:
    """What paper, ink, ruled lines and the table reflect: red, green and blue, 0 to 1."""
    light, dark = random.uniform(0.6, 0.95), random.uniform(0.08, 0.35)
    paper, digit = (light, dark) if ink == "dark" else (dark, light)
    # Lines are printed so that they do not compete with what is written.
    lines = paper + random.uniform(0.12, 0.4) * (digit - paper)
    beyond = random.uniform(0.05, 0.9)

    def tinted(tone: float, strength: float) -> _Plane:
        tint = 1 + random.uniform(-strength, strength, 3)
        return np.asarray((tone * tint / tint.mean()).clip(0, 1), np.float32)

    return tinted(paper, 0.08), tinted(digit, 0.3), tinted(lines, 0.2), tinted(beyond, 0.2)


def _strokes(
    pixels: NDArray[np.uint8], random: np.random.Generator, height: int, width: int
) -> tuple[_Plane, tuple[int, int, int]]:
    """Coverage by ink, 0 to 1, and the top, left and side of MNIST's frame in it."""
    side = round(random.uniform(0.3, 0.95) * min(height, width))
    top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
    digit = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    digit = digit.rotate(random.uniform(-8, 8), Image.Resampling.BICUBIC)
    values = np.asarray(digit, np.float32) / 255
    # MNIST's gray edges are an artefact of its reduction: a pen's are sharp, but for the focus.
    sharpness = random.uniform(2, 5)
    values = ((values - 0.45) * sharpness + 0.5).clip(0, 1)
    values = ndimage.gaussian_filter(values, random.uniform(0, 0.008) * side)
    strokes = np.zeros((height, width), np.float32)
    strokes[top : top + side, left : left + side] = values
    return strokes, (top, left, side)


def _ruling(random: np.random.Generator, height: int, width: int, side: int) -> _Plane:
    """Coverage by ruled lines, or by a grid, of some pixels' width and at a slight angle."""
    spacing = random.uniform(0.15, 0.6) * side
    thickness = max(random.uniform(0.005, 0.012) * side, 1)
    angle = random.normal(0, math.radians(2))
    y, x = np.ogrid[:height, :width]
    across = (y * math.cos(angle) + x * math.sin(angle)).astype(np.float32)
    along = (x * math.cos(angle) - y * math.sin(angle)).astype(np.float32)

    def lines(places: _Plane) -> _Plane:
        distance = np.abs((places + random.uniform(0, spacing)) % spacing - spacing / 2)
        covered: _Plane = (thickness / 2 + 0.5 - distance).clip(0, 1)
        return covered

    return np.maximum(lines(across), lines(along)) if random.random() < 0.4 else lines(across)


def _outside(
    random: np.random.Generator, height: int, width: int, frame: tuple[int, int, int]
) -> _Plane:
    """Where the table is seen, 0 or 1: past one to three edges of the sheet, never on the digit."""
    top, left, side = frame
    angle = random.normal(0, math.radians(2))
    y, x = np.ogrid[:height, :width]
    depths = (
        y + x * math.tan(angle),
        height - 1 - y + x * math.tan(angle),
        x + y * math.tan(angle),
        width - 1 - x + y * math.tan(angle),
    )
    outside = np.zeros((height, width), np.float32)
    for edge in random.permutation(4)[: random.integers(1, 4)]:
        depth = depths[edge]
        room = depth[top : top + side, left : left + side].min()
        place = min(random.uniform(0.02, 0.2) * min(height, width), room)
        np.maximum(outside, (place - depth + 0.5).clip(0, 1), out=outside)
    return outside


def _gradient(random: np.random.Generator, height: int, width: int) -> _Plane:
    """Light that falls off to one side, and to the corners as a lens has it."""
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle = random.uniform(0, 2 * math.pi)
    slope = (x * math.cos(angle) + y * math.sin(angle)) / math.sqrt(2) / 2 + 0.5
    falls_to = random.uniform(0.35, 0.85)
    vignette = random.uniform(0, 0.35) * (x**2 + y**2) / 2
    light: _Plane = ((1 - (1 - falls_to) * slope) * (1 - vignette)).astype(np.float32)
    return light


def _shadow(random: np.random.Generator, height: int, width: int) -> _Plane:
    """A shadow with a soft edge: a band across the page, or all on one side of a line."""
    y, x = np.ogrid[:height, :width]
    size = max(height, width)
    angle = random.uniform(0, 2 * math.pi)
    distance = (x - width * random.uniform(0.2, 0.8)) * math.cos(angle)
    distance = distance + (y - height * random.uniform(0.2, 0.8)) * math.sin(angle)
    if random.random() < 0.5:
        distance = np.abs(distance) - random.uniform(0.05, 0.25) * size
    softness = random.uniform(0.01, 0.06) * size
    lit = 1 / (1 + np.exp(-(distance / softness).clip(-30, 30)))
    return np.asarray(1 - random.uniform(0.2, 0.55) * (1 - lit), np.float32)


def _noise(random: np.random.Generator, height: int, width: int) -> _Plane:
    return random.standard_normal((height, width), np.float32)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    """The file, of a lower quality than asked for if it were over 1 MiB."""
    while True:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= _MAX_BYTES:
            return buffer.getvalue()
        quality -= 10
