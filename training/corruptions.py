"""The 15 corruptions of MNIST-C, each with the strength that the data set has.

Definitions and parameters are those of Mu and Gilmer 2019, "MNIST-C: A Robustness Benchmark for
Computer Vision" (arXiv 1906.02337), and of the program that they published with it; each is
computed for many images at once. Differences: the random numbers, and the end, which rounds to
whole gray levels. scikit-image 0.26, for which theirs was written, finds the same Canny edges in
500 digits and warps them to the same pixels, within a gray level; ImageMagick's motion blur is
written from its documented definition and was not compared.

They are an evaluation's. Training uses none of them.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from training.data import Split
from training.evaluation import accuracy

SIDE = 28
_CENTRE = (SIDE - 1) / 2
# Images at once, which fit a core's cache.
_CHUNK = 250

_Images = NDArray[np.float64]
# From images [n, 28, 28] of 0 to 1, the strength's parameter and random numbers to the same shape,
# which is clipped to 0 to 1 afterwards.
_Corruption = Callable[[_Images, Any, np.random.Generator], _Images]


def corrupt(
    images: NDArray[np.uint8], kind: str, severity: int | None = None, seed: int = 0
) -> NDArray[np.uint8]:
    """Corrupt images in one of MNIST-C's ways; the same arguments give the same bytes.

    Args:
        images: [n, 28, 28], ink bright on 0.
        kind: one of `KINDS`.
        severity: 1 to 5, for the kinds in `SEVERITIES`; None is the data set's own.
        seed: of everything that is random.

    Returns:
        [n, 28, 28].

    Raises:
        ValueError: no such kind, no such severity, or images of another shape.
    """
    if kind not in KINDS:
        raise ValueError(f"no such corruption: {kind!r}; there are {', '.join(KINDS)}")
    if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE) or images.dtype != np.uint8:
        raise ValueError(f"expected uint8 [n, 28, 28], got {images.dtype} {list(images.shape)}")
    parameter = _parameter(kind, severity)
    random = np.random.default_rng([seed, KINDS.index(kind)])
    result = np.empty_like(images)
    for begin in range(0, len(images), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        corrupted = _CORRUPTIONS[kind](images[part] / 255, parameter, random)
        result[part] = np.rint(corrupted.clip(0, 1) * 255)
    return result


def robustness(
    model: nn.Module,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    seed: int = 0,
    severity: int | None = None,
) -> dict[str, float]:
    """Accuracy by kind, of images each corrupted in every way.

    Args:
        model: outputs probabilities [n, classes] of uint8 [n, 28, 28].
        images: [n, 28, 28].
        labels: [n].
        seed: of everything that is random.
        severity: 1 to 5, of the kinds that have several; None is the data set's own, of all kinds.

    Returns:
        Share of the images answered right, 0 to 1.

    Raises:
        ValueError: no such severity.
    """
    known = torch.from_numpy(labels)
    return {
        kind: accuracy(model, Split(torch.from_numpy(corrupt(images, kind, severity, seed)), known))
        for kind in (KINDS if severity is None else SEVERITIES)
    }


def _parameter(kind: str, severity: int | None) -> Any:
    if kind not in SEVERITIES:
        if severity is not None:
            raise ValueError(f"{kind} has one strength only: expected None, got {severity}")
        return None
    parameters = SEVERITIES[kind]
    severity = DATA_SET_SEVERITY[kind] if severity is None else severity
    if not 1 <= severity <= len(parameters):
        raise ValueError(f"{kind} has severities 1 to {len(parameters)}, got {severity}")
    return parameters[severity - 1]


def _shot_noise(x: _Images, photons: int, random: np.random.Generator) -> _Images:
    """Counts of so many photons from full white."""
    return random.poisson(x * photons) / photons


def _impulse_noise(x: _Images, share: float, random: np.random.Generator) -> _Images:
    """A share of the pixels turns to white or black, equally often."""
    is_white = random.random(x.shape) < 0.5
    return np.where(random.random(x.shape) < share, is_white, x)


def _glass_blur(
    x: _Images, parameter: tuple[float, int, int], random: np.random.Generator
) -> _Images:
    """Pixels change places with near ones, between two blurs along columns.

    The published program takes the columns for channels, and so blurs no row.
    """
    sigma, reach, passes = parameter

    def blur(images: _Images) -> _Images:
        blurred: _Images = ndimage.gaussian_filter1d(images, sigma, axis=1, mode="nearest")
        return blurred

    n = len(x)
    # One pixel of all images is a row; theirs, and so this, cuts to whole gray levels here.
    pixels = np.floor(blur(x).reshape(n, -1).T * 255)
    columns = np.arange(n)
    for _ in range(passes):
        for row in range(SIDE - reach, reach, -1):
            for column in range(SIDE - reach, reach, -1):
                down, right = random.integers(-reach, reach, (2, n))
                here = row * SIDE + column
                there = here + (down * SIDE + right) * random.integers(0, 2, n)
                pixels[here], pixels[there, columns] = (
                    pixels[there, columns],
                    pixels[here].copy(),
                )
    return blur(pixels.T.reshape(x.shape) / 255)


def _motion_blur(x: _Images, parameter: tuple[int, float], random: np.random.Generator) -> _Images:
    """Half a Gaussian along a line of up to 45 degrees, as ImageMagick has it.

    A pixel takes from those on one side of it, of whole coordinates, and at the border from the
    nearest.
    """
    reach, sigma = parameter
    angle = np.radians(random.uniform(-45, 45, len(x)))
    steps = np.arange(2 * reach + 1)
    weights = np.exp(-((steps / sigma) ** 2) / 2)
    places = np.arange(SIDE)
    blurred = np.zeros_like(x)
    image = np.arange(len(x))[:, None, None]
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        down, right = np.ceil(step * np.array([np.sin(angle), np.cos(angle)]) - 0.5).astype(int)
        rows = (places + down[:, None]).clip(0, SIDE - 1)
        columns = (places + right[:, None]).clip(0, SIDE - 1)
        blurred += weight * x[image, rows[:, :, None], columns[:, None, :]]
    return blurred


def _warp(x: _Images, matrix: NDArray[np.float64]) -> _Images:
    """An output pixel at (x, y) from the centre is the input's at `matrix` times (x, y)."""
    inverse = np.eye(3)
    inverse[1:, 1:] = matrix[::-1, ::-1]  # arrays have rows, y, first
    centre = np.array([0, _CENTRE, _CENTRE])
    warped: _Images = ndimage.affine_transform(
        x, inverse, centre - inverse @ centre, order=1, mode="grid-constant"
    )
    return warped


def _warp_either_way(
    x: _Images, matrix: Callable[[float], list[list[float]]], random: np.random.Generator
) -> _Images:
    """Warp by `matrix(1)` or `matrix(-1)`, equally often."""
    sign = random.integers(0, 2, len(x)) * 2 - 1
    warped = np.empty_like(x)
    for way in (-1, 1):
        warped[sign == way] = _warp(x[sign == way], np.array(matrix(way)))
    return warped


def _shear(x: _Images, angle: float, random: np.random.Generator) -> _Images:
    """The vertical axis turns by an angle in radians, and the horizontal does not.

    scikit-image defined it so until 2022, when it began to take the tangent.
    """
    return _warp_either_way(
        x, lambda sign: [[1, -np.sin(sign * angle)], [0, np.cos(angle)]], random
    )


def _scale(x: _Images, factor: float, _: np.random.Generator) -> _Images:
    return _warp(x, np.eye(2) / factor)


def _rotate(x: _Images, angle: float, random: np.random.Generator) -> _Images:
    cos, sin = np.cos(angle), np.sin(angle)
    return _warp_either_way(x, lambda sign: [[cos, -sign * sin], [sign * sin, cos]], random)


def _brightness(x: _Images, more: float, _: np.random.Generator) -> _Images:
    return x + more


def _translate(x: _Images, pixels: int, random: np.random.Generator) -> _Images:
    """So many pixels to the left or right, and as many up or down."""
    down, right = pixels * (random.integers(0, 2, (2, len(x), 1)) * 2 - 1) + pixels
    padded = np.pad(x, ((0, 0), (pixels, pixels), (pixels, pixels)))
    places = np.arange(SIDE)
    image = np.arange(len(x))[:, None, None]
    moved: _Images = padded[image, (places + down)[:, :, None], (places + right)[:, None, :]]
    return moved


def _stripe(x: _Images, _: None, __: np.random.Generator) -> _Images:
    """The left and the right quarter are inverted."""
    columns = np.arange(SIDE)
    return np.where((columns < SIDE // 4) | (columns >= SIDE - SIDE // 4), 1 - x, x)


def _fog(x: _Images, parameter: tuple[float, float], random: np.random.Generator) -> _Images:
    """A fractal landscape is added, and the sum reduced to the image's own brightness."""
    strength, decay = parameter
    brightest = x.max(axis=(1, 2), keepdims=True)
    fog = np.empty_like(x)
    for begin in range(0, len(x), 25):  # whose landscapes fit a core's cache
        part = fog[begin : begin + 25]
        part[:] = _landscapes(len(part), decay, random)[:, :SIDE, :SIDE]
    foggy: _Images = (x + strength * fog) * brightest / (brightest + strength)
    return foggy


def _landscapes(n: int, decay: float, random: np.random.Generator) -> NDArray[np.float32]:
    """Heights of 0 to 1, [n, 256, 256], by diamonds and squares on a torus (Fournier et al. 1982).

    From its lowest point to its highest, a landscape is 1; its corner is cut out.
    """
    side = 256
    height = np.zeros((n, side, side), np.float32)
    step, amplitude = side, 100.0
    while step >= 2:
        half = step // 2

        def middle(sums: NDArray[np.float32], amplitude: float = amplitude) -> NDArray[np.float32]:
            # The published program multiplies with the amplitude twice.
            noise = random.random(sums.shape, dtype=np.float32)
            noise -= np.float32(0.5)
            noise *= np.float32(2 * amplitude**2)
            sums *= np.float32(0.25)
            sums += noise
            return sums

        corners = height[:, ::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=1)
        middles = middle(pairs + np.roll(pairs, -1, axis=2))
        height[:, half::step, half::step] = middles
        height[:, ::step, half::step] = middle(
            middles + np.roll(middles, 1, axis=1) + corners + np.roll(corners, -1, axis=2)
        )
        height[:, half::step, ::step] = middle(
            middles + np.roll(middles, 1, axis=2) + corners + np.roll(corners, -1, axis=1)
        )
        step, amplitude = half, amplitude / decay
    height -= height.min(axis=(1, 2), keepdims=True)
    height /= height.max(axis=(1, 2), keepdims=True)
    return height


def _spatter(
    x: _Images, parameter: tuple[float, float, float, float, float], random: np.random.Generator
) -> _Images:
    """Splashes of dark gray mud."""
    mean, deviation, width, level, softness = parameter

    def blur(images: _Images, sigma: float) -> _Images:
        blurred: _Images = ndimage.gaussian_filter(images, sigma, mode="nearest", axes=(1, 2))
        return blurred

    liquid = blur(random.normal(mean, deviation, x.shape), width)
    mud = blur((liquid > level).astype(float), softness)
    mud[mud < 0.8] = 0
    return x * (1 - mud) + 63 / 255 * mud


def _line(column_0: float, row_0: float, column_1: float, row_1: float) -> _Images:
    """A line of 0 to 1 from a point to one on its right, [28, 28]: bright within 2.3 rows of it."""
    places = np.arange(SIDE)
    rows = row_0 + (row_1 - row_0) / (column_1 - column_0) * (places - column_0)
    distance = np.abs(places[:, None] - rows).clip(0, 2.3 - 1e-10)
    line = (np.log(1 - distance / 2.3) + 1).clip(0, 1)
    line[:, (places < np.floor(column_0)) | (places >= np.ceil(column_1))] = 0
    return line


def _dotted_line(x: _Images, _: None, random: np.random.Generator) -> _Images:
    """From a row at the left to one at the right, two columns on and two off."""
    ends, which = np.unique(random.integers(0, 27, (len(x), 2)), axis=0, return_inverse=True)
    lines = np.array([_line(0, left, 27, right) for left, right in ends])
    lines[:, :, np.arange(SIDE) % 4 < 2] = 0
    crossed: _Images = x + lines[which]
    return crossed


def _zigzag(x: _Images, _: None, random: np.random.Generator) -> _Images:
    """From a row at the left to one up to five above or four below it at the right."""
    starts = random.integers(0, 27, len(x))
    pairs = np.stack([starts, random.integers(-5, 5, len(x))], axis=1)
    ends, which = np.unique(pairs, axis=0, return_inverse=True)
    zigzags = np.array([_one_zigzag(start, rise) for start, rise in ends])
    crossed: _Images = x + zigzags[which]
    return crossed


def _one_zigzag(start: int, rise: int) -> _Images:
    left, right = 2, 25
    along = np.hypot(right - left, rise)
    # Corners of the zigzag along a horizontal line, every four pixels and two off it.
    corners = [(0.0, 0.0), *((4.0 * i + 2, 2.0 * (-1) ** i) for i in range(6))]
    corners.append((along, corners[-1][1] / (2 * (along - 20))))
    cos, sin = (right - left) / along, rise / along
    columns, rows = np.array([[cos, -sin], [sin, cos]]) @ np.array(corners).T
    columns, rows = columns + left, rows + start
    return sum(
        (_line(columns[i], rows[i], columns[i + 1], rows[i + 1]) for i in range(len(corners) - 1)),
        start=np.zeros((SIDE, SIDE)),
    )


def _canny_edges(x: _Images, _: None, __: np.random.Generator) -> _Images:
    """Edges as white lines of one pixel (Canny 1986), as scikit-image finds them.

    Smoothing of 1 pixel, thresholds of 0.1 and 0.2 for the magnitude of Sobel's gradient.
    """

    def smooth(images: _Images) -> _Images:
        smoothed: _Images = ndimage.gaussian_filter(images, 1, mode="constant", axes=(-2, -1))
        return smoothed

    def sobel(images: _Images, axis: int) -> _Images:
        gradient = ndimage.correlate1d(images, [-1.0, 0, 1], axis=axis)
        across: _Images = ndimage.correlate1d(gradient, [1.0, 2, 1], axis=3 - axis)
        return across

    # What the smoothing takes from beyond the border does not count.
    smoothed = smooth(x) / smooth(np.ones((SIDE, SIDE)))
    down, right = sobel(smoothed, 1), sobel(smoothed, 2)
    size = np.hypot(down, right)

    # An edge is where the gradient is no smaller than at the two points one step along it and
    # against it. Their sizes are interpolated between an axis and a diagonal.
    padded = np.pad(size, ((0, 0), (1, 1), (1, 1)))
    is_steep = np.abs(down) >= np.abs(right)
    large = np.where(is_steep, np.abs(down), np.abs(right))
    small = np.where(is_steep, np.abs(right), np.abs(down))
    weight = small / np.where(large > 0, large, 1)
    image, row, column = np.ogrid[: len(x), 1 : SIDE + 1, 1 : SIDE + 1]
    step_down = np.where(down >= 0, 1, -1)
    step_right = np.where(right >= 0, 1, -1)
    is_edge = size > 0
    is_edge[:, [0, -1]] = is_edge[:, :, [0, -1]] = False
    for sign in (1, -1):
        i, j = sign * step_down, sign * step_right
        on_axis = padded[image, row + i * is_steep, column + j * ~is_steep]
        on_diagonal = padded[image, row + i, column + j]
        is_edge &= on_diagonal * weight + on_axis * (1 - weight) <= size

    # Weak edges count where they touch a strong one, also diagonally, within the image.
    neighbours = np.zeros((3, 3, 3), int)
    neighbours[1] = 1
    labels, count = ndimage.label(is_edge & (size >= 0.1), neighbours)
    is_strong = np.zeros(count + 1, bool)
    is_strong[labels[is_edge & (size >= 0.2)]] = True
    is_strong[0] = False
    edges: _Images = is_strong[labels].astype(float)
    return edges


_CORRUPTIONS: dict[str, _Corruption] = {
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "shear": _shear,
    "scale": _scale,
    "rotate": _rotate,
    "brightness": _brightness,
    "translate": _translate,
    "stripe": _stripe,
    "fog": _fog,
    "spatter": _spatter,
    "dotted_line": _dotted_line,
    "zigzag": _zigzag,
    "canny_edges": _canny_edges,
}
KINDS = tuple(_CORRUPTIONS)

# The parameter of severities 1 to 5, for the kinds that have several.
SEVERITIES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "shot_noise": (60, 25, 12, 5, 3),
        "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
        "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "shear": (0.2, 0.4, 0.6, 0.8, 1.0),
        "scale": (0.9, 0.8, 0.7, 0.6, 0.5),
        "rotate": (0.2, 0.4, 0.6, 0.8, 1.0),
        "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
        "translate": (1, 2, 3, 4, 5),
        "fog": ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
        "spatter": (
            (0.65, 0.3, 4.0, 0.69, 0.6),
            (0.65, 0.3, 3.0, 0.68, 0.6),
            (0.65, 0.3, 2.0, 0.68, 0.5),
            (0.65, 0.3, 1.0, 0.65, 1.5),
            (0.67, 0.4, 1.0, 0.65, 1.5),
        ),
    }
)

# Severity of the data set's own images.
DATA_SET_SEVERITY: Mapping[str, int] = MappingProxyType(
    {
        "shot_noise": 5,
        "impulse_noise": 4,
        "glass_blur": 1,
        "motion_blur": 1,
        "shear": 2,
        "scale": 3,
        "rotate": 2,
        "brightness": 5,
        "translate": 3,
        "fog": 5,
        "spatter": 4,
    }
)
