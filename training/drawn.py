"""Digits drawn from outlines, in ways that MNIST's writers seldom have.

MNIST is from the United States: few of its 1s have a flag and few of its 7s a bar. In much of the
world they do, and a 4 or 9 may be built of other strokes.
"""

import torch

from training.augment import SIDE, Draw, coarsen, curve, strokes
from training.data import Split

# Of each label: enough that jitter and width make many hands, and an eleventh of MNIST.
COUNT = 500

_Points = tuple[tuple[float, float], ...]
# By label, ways to write it: strokes, each a smooth curve through points across 0 to 1 and down 0
# to 1.3. Two points are a straight line.
_WAYS: dict[int, tuple[tuple[_Points, ...], ...]] = {
    0: ((((0.5, 0), (0.15, 0.4), (0.15, 0.9), (0.5, 1.3), (0.85, 0.9), (0.85, 0.4), (0.5, 0)),),),
    1: (
        (((0.1, 0.55), (0.55, 0)), ((0.55, 0), (0.55, 1.3))),
        (((0.25, 0.35), (0.55, 0)), ((0.55, 0), (0.55, 1.3))),
        (((0.25, 0.45), (0.55, 0)), ((0.55, 0), (0.55, 1.3)), ((0.25, 1.3), (0.85, 1.3))),
        (((0.05, 0.7), (0.6, 0)), ((0.6, 0), (0.6, 1.3))),
        (((0.4, 0), (0.4, 1.3)), ((0.15, 1.3), (0.8, 1.3))),
    ),
    2: (
        (
            ((0.15, 0.3), (0.5, 0), (0.8, 0.3), (0.55, 0.75), (0.15, 1.25)),
            ((0.15, 1.25), (0.9, 1.25)),
        ),
    ),
    3: (
        (
            ((0.15, 0.15), (0.5, 0), (0.8, 0.3), (0.45, 0.6)),
            ((0.45, 0.6), (0.85, 0.9), (0.5, 1.3), (0.1, 1.15)),
        ),
        (
            ((0.15, 0), (0.8, 0)),
            ((0.8, 0), (0.4, 0.55)),
            ((0.4, 0.55), (0.85, 0.9), (0.5, 1.3), (0.1, 1.15)),
        ),
    ),
    4: (
        (((0.55, 0), (0.1, 0.85)), ((0.1, 0.85), (0.95, 0.8)), ((0.7, 0.35), (0.6, 1.3))),
        (((0.5, 0), (0.1, 0.8)), ((0.1, 0.8), (0.9, 0.75)), ((0.8, 0.5), (0.45, 1.3))),
        (((0.7, 0), (0.1, 0.85)), ((0.1, 0.85), (0.95, 0.85)), ((0.7, 0), (0.7, 1.3))),
        (((0.35, 0), (0.15, 0.7), (0.5, 0.8), (0.95, 0.7)), ((0.75, 0.3), (0.6, 1.3))),
        (((0.6, 0), (0.2, 0.6), (0.45, 0.85), (0.95, 0.6)), ((0.85, 0.4), (0.5, 1.3))),
        (
            ((0.65, 0), (0.15, 0.7), (0.4, 0.9), (0.75, 0.8)),
            ((0.8, 0.45), (0.7, 0.9), (0.55, 1.3)),
        ),
    ),
    5: (
        (
            ((0.8, 0), (0.25, 0)),
            ((0.25, 0), (0.2, 0.55)),
            ((0.2, 0.55), (0.6, 0.45), (0.85, 0.85), (0.55, 1.25), (0.15, 1.2)),
        ),
    ),
    6: (
        (
            (
                (0.7, 0),
                (0.35, 0.4),
                (0.2, 0.9),
                (0.5, 1.3),
                (0.8, 0.95),
                (0.5, 0.7),
                (0.2, 0.9),
            ),
        ),
    ),
    7: (
        (((0.1, 0.05), (0.85, 0.05)), ((0.85, 0.05), (0.4, 1.3))),
        (((0.1, 0.05), (0.85, 0.05)), ((0.85, 0.05), (0.4, 1.3)), ((0.3, 0.65), (0.85, 0.6))),
    ),
    8: (
        (
            ((0.5, 0.6), (0.2, 0.3), (0.5, 0), (0.8, 0.3), (0.5, 0.6)),
            ((0.5, 0.6), (0.15, 0.95), (0.5, 1.3), (0.85, 0.95), (0.5, 0.6)),
        ),
    ),
    9: (
        (
            ((0.8, 0.3), (0.5, 0), (0.2, 0.3), (0.5, 0.6), (0.8, 0.3)),
            ((0.8, 0.3), (0.82, 0.8), (0.6, 1.2), (0.2, 1.25)),
        ),
        (
            ((0.75, 0.1), (0.4, 0), (0.2, 0.35), (0.5, 0.6), (0.8, 0.4)),
            ((0.8, 0.1), (0.8, 0.8), (0.55, 1.25), (0.15, 1.2)),
        ),
    ),
}


def drawn_digits() -> Split:
    """5,000 digits in MNIST's form, uint8 [n, 28, 28], always the same."""
    generator = torch.Generator().manual_seed(4)
    images, labels = [], []
    for label, ways in _WAYS.items():
        for number, way in enumerate(ways):
            count = COUNT // len(ways) + (number < COUNT % len(ways))
            images.append(_draw(way, count, generator))
            labels += [label] * count
    return Split(torch.cat(images), torch.tensor(labels))


def _draw(way: tuple[_Points, ...], count: int, generator: torch.Generator) -> torch.Tensor:
    draw = Draw(count, generator)
    # Where strokes meet, they move together.
    places = sorted({point for points in way for point in points})
    moved = torch.tensor(places).T + draw.normal(2, len(places)) * 0.06
    moved[:, 0] *= draw.uniform(0.6, 1.1, 1)
    # To 20 pixels high, and to the middle.
    low, high = moved.amin(2, keepdim=True), moved.amax(2, keepdim=True)
    scale = draw.uniform(15, 19, 1, 1) / (high - low).amax(1, keepdim=True)
    moved = (moved - (low + high) / 2) * scale + (SIDE - 1) / 2
    width = draw.uniform(0.5, 2.5)
    drawn = torch.zeros(count, 1, SIDE, SIDE)
    for points in way:
        stroke = moved[:, :, [places.index(point) for point in points]]
        if len(points) == 2:
            covered = strokes(stroke[..., :1], stroke[..., 1:], width)
        else:
            covered = curve(stroke, width, 5)
        drawn = torch.maximum(drawn, covered)
    # Half of them are as thick and coarse as small scans.
    half = count // 2
    drawn[:half] = coarsen(drawn[:half], Draw(half, generator))
    return (drawn.squeeze(1) * 255).to(torch.uint8)
