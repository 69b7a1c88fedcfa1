"""Find a digit's ink on paper that is not of one gray: in uneven light, with shadows, ruled lines.

Paper is the picture's closing (of light ink, its opening): a maximum and then a minimum over
squares that no stroke fills, which follows edges of shadows and of the sheet (Gonzalez and Woods,
"Digital Image Processing", 9.6, the bottom-hat and top-hat transforms). What differs from it by
more than Otsu's threshold falls into connected components, and the one that looks most like
something written is the digit. It is looked for in the whole picture first and then, finer, around
what was found, whose strokes and ink say how wide a square and how high a threshold must be.
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

import torch
from PIL import Image
from torch.nn import functional

from handler.errors import RequestError

# Pixels a side in which a digit is looked for, and in which it is then drawn. With 256, a digit a
# third as high as a photograph has strokes of three pixels.
_COARSE, _FINE = 256, 160
# Of the shorter side of the picture, and then of the width of the digit's strokes: a square that
# strokes do not fill. Smaller ones follow shadows better.
_COARSE_REACH, _FINE_REACH = 0.25, 2.5
# Of the digit's ink: what else is called ink near it. Shadows, where they remain, are a half.
_FINE_THRESHOLD = 0.6
# Of the digit's longer side: what is cut out around it, and how far its parts may be apart.
_MARGIN, _GAP = 0.35, 0.15
# Pixels of the picture: less on both sides is a speck.
_LEAST_SIDE = 7
# Ink differs from its paper by at least this share of it.
_LEAST_INK = 0.1
# The outline of ink is a step in brightness of at least this share; light alone falls off slower.
_LEAST_STEP = 0.04
# Of 256 levels: added to a paper's before dividing by it, as noise is no smaller in the dark.
_DARK = 16

_RUN = re.compile(rb"\x01+")


@dataclass
class _Component:
    """Connected pixels, as runs of row, begin and end, and how many of them are on the border."""

    left: int
    top: int
    right: int
    bottom: int
    area: int
    at_border: int
    runs: list[tuple[int, int, int]]

    @property
    def side(self) -> int:
        return max(self.right - self.left, self.bottom - self.top)

    @property
    def leaves(self) -> bool:
        """It goes on outside the picture, as a table beyond the page does; strokes do not."""
        return self.at_border > 0.3 * self.side

    def gap(self, other: "_Component") -> int:
        """Pixels between the boxes of two; 0 or less if they overlap."""
        return max(
            self.left - other.right,
            other.left - self.right,
            self.top - other.bottom,
            other.top - self.bottom,
        )

    def add(self, other: "_Component") -> None:
        self.left, self.top = min(self.left, other.left), min(self.top, other.top)
        self.right, self.bottom = max(self.right, other.right), max(self.bottom, other.bottom)
        self.area += other.area
        self.at_border += other.at_border
        self.runs += other.runs


@dataclass
class _Digit:
    """What was found: float32 [height, width] of ink, and which pixels of it are the digit's."""

    score: float
    is_light: bool
    ink: torch.Tensor
    noise: float
    component: _Component


def local_ink(gray: Image.Image) -> Image.Image:
    """Find a digit against its local paper.

    Args:
        gray: mode L, of any size.

    Returns:
        Mode L, of at most 160 pixels a side and just the digit's box and a little more: 255 where
        there is ink, 0 on paper.

    Raises:
        RequestError: there is nothing on the paper.
    """
    levels, factor = _levels(gray, (0, 0, *gray.size), _COARSE)
    reach = _COARSE_REACH * min(levels.shape)
    digit = _find(levels, reach, (False, True), _LEAST_SIDE / factor)
    found = digit.component
    mask = _mask([found], digit.ink)
    width = (_stroke_width(mask) + 1) * factor  # reduced, a stroke may lose a pixel
    level = _FINE_THRESHOLD * float(digit.ink[mask > 0].median())
    margin = round(_MARGIN * found.side) + 2
    around = (
        max(found.left - margin, 0) * factor,
        max(found.top - margin, 0) * factor,
        min((found.right + margin) * factor, gray.width),
        min((found.bottom + margin) * factor, gray.height),
    )
    levels, factor = _levels(gray, around, _FINE)
    reach = _FINE_REACH * width / factor
    digit = _find(levels, reach, (digit.is_light,), _LEAST_SIDE / factor, level)
    mask = _mask([digit.component], digit.ink)
    full = digit.ink[mask > 0].median()
    edge = max(1, round(0.03 * digit.component.side))
    nothing = 2 * digit.noise
    share = ((digit.ink - nothing) / (full - nothing).clamp_min(1e-3)).clamp(0, 1)
    pixels = (share * _extreme(mask, edge) * 255).round()
    height, width = pixels.shape
    return Image.frombytes("L", (width, height), bytes(_uint8(pixels)))


def _stroke_width(mask: torch.Tensor) -> float:
    """Pixels, in the mean: a long stroke's outline on both sides is twice its length."""
    outline = mask > _extreme(mask, 1, largest=False)
    return 2 * float(mask.sum() / outline.sum())


def _levels(
    gray: Image.Image, box: tuple[int, int, int, int], side: int
) -> tuple[torch.Tensor, int]:
    """Part of a picture, float32 [height, width] of 0 to 255, and how many times smaller."""
    factor = math.ceil(max(box[2] - box[0], box[3] - box[1]) / side)
    part = gray.reduce(factor, box) if factor > 1 else gray.crop(box)
    pixels = torch.frombuffer(bytearray(part.tobytes()), dtype=torch.uint8)
    return pixels.reshape(part.height, part.width).float(), factor


def _uint8(x: torch.Tensor) -> bytearray:
    """The numbers of a tensor as bytes, without NumPy and without making each a Python object."""
    data = bytearray(x.numel())
    torch.frombuffer(data, dtype=torch.uint8).copy_(x.flatten())
    return data


def _extreme(x: torch.Tensor, radius: int, largest: bool = True) -> torch.Tensor:
    """The largest or smallest within a square around each place of [height, width].

    Windows double in length, so that a square of 2 * radius + 1 takes only its logarithm in steps.
    """
    result = x if largest else -x
    for axis in (0, 1):
        reach = min(radius, x.shape[axis] - 1)
        padding = (0, 0, reach, reach) if axis == 0 else (reach, reach)
        result = functional.pad(result, padding, value=-math.inf)
        have, want = 1, 2 * reach + 1
        while have < want:
            step = min(have, want - have)
            length = result.shape[axis] - step
            result = torch.maximum(
                result.narrow(axis, 0, length), result.narrow(axis, step, length)
            )
            have += step
    return result if largest else -result


def _blur(x: torch.Tensor) -> torch.Tensor:
    """The mean of each pixel and its eight neighbours, in an eighth of `avg_pool2d`'s time."""
    padded = functional.pad(x[None], (1, 1, 1, 1), mode="replicate")[0]
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9


def _ink(levels: torch.Tensor, reach: float, is_light: bool) -> torch.Tensor:
    """How much darker or lighter than its paper each pixel is, as a share of the paper's level."""
    height, width = levels.shape
    # Paper changes slowly, and means are less noisy than pixels.
    factor = max(1, min(4, int(reach / 8)))
    small = functional.avg_pool2d(levels[None], factor, ceil_mode=True, count_include_pad=False)[0]
    radius = max(1, math.ceil(reach / factor / 2))
    paper = _extreme(_extreme(small, radius, not is_light), radius, is_light)
    paper = functional.interpolate(paper[None, None], scale_factor=float(factor), mode="bilinear")
    paper = paper[0, 0, :height, :width]
    difference = levels - paper if is_light else paper - levels
    return difference.clamp_min(0) / (paper + _DARK)


def _find(
    levels: torch.Tensor,
    reach: float,
    polarities: tuple[bool, ...],
    least_side: float,
    level: float | None = None,
) -> _Digit:
    """The digit in a picture, among components of dark ink, of light ink, or of both.

    Ink is what is over a level, or over Otsu's.
    """
    best: _Digit | None = None
    for is_light in polarities:
        ink = _ink(levels, reach, is_light)
        smooth = _blur(ink) if min(ink.shape) >= 64 else ink
        noise = float(smooth.median())
        components = _components_of(smooth, 2.5 * noise + 0.02, level)
        components.sort(key=lambda component: -component.side)
        for component in components[:6]:
            if component.side < max(least_side, 2):
                break
            score = _score(levels, component, is_light)
            if score > (best.score if best else 0):
                best = _Digit(score, is_light, ink, noise, component)
                others = [other for other in components if other is not component]
    if best is None:
        raise RequestError("the image is blank")
    _join(best.component, others)
    return best


def _join(digit: _Component, others: list[_Component]) -> None:
    """Add to a digit its parts: near by, not too small, and not going on outside."""
    rest = [c for c in others if c.area >= 0.02 * digit.area and not c.leaves]
    while True:
        near = [c for c in rest if digit.gap(c) <= _GAP * max(digit.side, c.side)]
        if not near:
            return
        for component in near:
            digit.add(component)
            rest.remove(component)


def _components_of(ink: torch.Tensor, floor: float, level: float | None) -> list[_Component]:
    """Components over a level, or Otsu's, which is found anew without those that leave the picture.

    A table beyond the page differs from it more than ink may.
    """
    components: list[_Component] = []
    for _ in range(4):
        over = ink[ink > floor]
        if not len(over):
            return []
        least = max(_otsu(over) if level is None else level, floor, _LEAST_INK)
        components = _components(ink > least)
        leaving = [c for c in components if c.leaves and c.area > 4]
        if not leaving:
            break
        inside = [c for c in components if not c.leaves]
        ink = ink * (1 - _extreme(_mask(leaving, ink), 2))
        # Where all ink leaves, it is the digit's that fills its picture.
        if not bool((ink > max(floor, _LEAST_INK)).any()):
            return inside or components
    return components


def _otsu(values: torch.Tensor) -> float:
    """The threshold that separates values into two classes best (Otsu 1979)."""
    bins = 64
    width = float(values.max()) / bins
    counts = torch.histc(values, bins, 0, width * bins)
    sums = (counts * (torch.arange(bins) + 0.5)).cumsum(0)
    counts = counts.cumsum(0)
    between = (sums[-1] * counts / counts[-1] - sums) ** 2
    between = between / (counts * (counts[-1] - counts)).clamp_min(1e-9)
    return (int(between[:-1].argmax()) + 1) * width


def _components(mask: torch.Tensor) -> list[_Component]:
    """Connected components, 8 neighbours a pixel, of bool [height, width]: runs that touch."""
    height, width = mask.shape
    stride = width + 1  # a gap, so that no run goes on in the next row
    parents: list[int] = []

    def root(label: int) -> int:
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label

    runs: list[tuple[int, int, int]] = []
    first = 0  # of the runs that may still touch one to come
    for label, match in enumerate(_RUN.finditer(_uint8(functional.pad(mask, (0, 1))))):
        row, begin = divmod(match.start(), stride)
        end = begin + match.end() - match.start()
        parents.append(label)
        while first < label and (runs[first][0], runs[first][2]) < (row - 1, begin):
            first += 1
        touching = first
        while touching < label and runs[touching][0] < row and runs[touching][1] <= end:
            parents[root(label)] = root(touching)
            touching += 1
        runs.append((row, begin, end))

    connected: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for label, run in enumerate(runs):
        connected[root(label)].append(run)
    return [_component(of_one, height, width) for of_one in connected.values()]


def _component(runs: list[tuple[int, int, int]], height: int, width: int) -> _Component:
    rows, begins, ends = zip(*runs, strict=True)
    lengths = [end - begin for _, begin, end in runs]
    at_border = begins.count(0) + ends.count(width)
    for edge in {0, height - 1}:
        at_border += sum(n for row, n in zip(rows, lengths, strict=True) if row == edge)
    return _Component(
        left=min(begins),
        top=rows[0],
        right=max(ends),
        bottom=rows[-1] + 1,
        area=sum(lengths),
        at_border=at_border,
        runs=runs,
    )


def _mask(components: list[_Component], like: torch.Tensor) -> torch.Tensor:
    """1 in components and 0 elsewhere, float32 [height, width]."""
    height, width = like.shape
    data = bytearray(height * width)
    for component in components:
        for row, begin, end in component.runs:
            data[row * width + begin : row * width + end] = b"\1" * (end - begin)
    return torch.frombuffer(data, dtype=torch.uint8).reshape(height, width).float()


def _score(levels: torch.Tensor, component: _Component, is_light: bool) -> float:
    """How much a component looks like something written.

    It is large, the picture has an edge along nearly all of its outline, which paper between a
    stroke and the page's edge has not, and it differs from what is around it.
    """
    height, width = levels.shape
    margin = max(4, round(0.2 * component.side))
    rows = slice(max(component.top - margin, 0), min(component.bottom + margin, height))
    columns = slice(max(component.left - margin, 0), min(component.right + margin, width))
    mask = _mask([component], levels)[rows, columns]
    region = _blur(levels[rows, columns])
    grown = _extreme(mask, 1)
    outline, around = grown > mask, grown == 0
    if not bool(around.any()):
        return 0.0
    lightest, darkest = _extreme(region, 2), _extreme(region, 2, largest=False)
    steps = ((lightest - darkest) / (lightest + _DARK))[outline]
    contrast = float((region[mask > 0].median() + _DARK) / (region[around].median() + _DARK))
    contrast = math.log(contrast) * (1 if is_light else -1)
    step = float(steps.quantile(0.1))
    if step < _LEAST_STEP:
        return 0.0
    score = step * component.side * max(contrast, 0.1)
    if component.at_border:
        score *= 0.15
    if component.area < 0.035 * component.side**2:  # a line: the thinnest strokes have twice that
        score *= 0.2
    return score
