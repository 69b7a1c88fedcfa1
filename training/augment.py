"""Random changes of digits, for training: cheap ones of a whole batch at once.

Half of a batch or more is changed a little, as another writer would; the rest is changed much, so
that the network meets what it may meet outside MNIST: digits turned, shifted and small, thin and
thick, as outlines, blurred, on papers of any tone and unevenly lit, with scribbles, blots and bars
over them, partly inverted, and with noise. None of these is a corruption of MNIST-C's: its
functions are for evaluation alone.

What is costly to make, smooth random fields and scribbles, is made once and drawn from. README.md
has the cost and what each change is good for.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch.nn import functional

SIDE = 28
# Of a batch, what is changed a little: clean accuracy needs many, the rest learns from fewer.
MILD_SHARE = 0.7
# How many fields of each kind are made: enough that an image never meets one twice in the same
# state, and no more than 20 MB.
_FIELDS = 3000


class Draw:
    """Random numbers for some images, [n, 1, 1, 1] so that they spread over pixels."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self._generator = generator

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        """Between two bounds; of [n, 1, 1, 1] if no shape is given."""
        size = (self.count, *(shape or (1, 1, 1)))
        drawn = torch.rand(size, generator=self._generator, device=self._generator.device)
        return drawn * (high - low) + low

    def normal(self, *shape: int) -> torch.Tensor:
        """Of mean 0 and variance 1, [n, *shape]."""
        size = (self.count, *shape)
        return torch.randn(size, generator=self._generator, device=self._generator.device)

    def of(self, fields: torch.Tensor) -> torch.Tensor:
        """A random one of some fields for each image, with [n, c, 28, 28]."""
        device = self._generator.device
        index = torch.randint(len(fields), (self.count,), generator=self._generator, device=device)
        return fields[index]


def augment(
    x: torch.Tensor, generator: torch.Generator, mild_share: float = MILD_SHARE
) -> torch.Tensor:
    """Change each image of a batch at random.

    Args:
        x: uint8 [n, 28, 28], in random order: the first are changed a little, the last much.
        generator: on the same device.
        mild_share: of the batch, what is changed a little.

    Returns:
        float32 [n, 28, 28], 0 to 255.
    """
    mild = round(len(x) * mild_share)
    images = _warp(x.unsqueeze(1) / 255, mild, generator)
    heavy = images[mild:]
    for share, change in _CHANGES:
        order = torch.randperm(len(heavy), generator=generator, device=x.device)
        chosen = order[: round(share * len(heavy))]
        if len(chosen):
            heavy[chosen] = change(heavy[chosen], Draw(len(chosen), generator))
    return images.clamp_(0, 1).squeeze(1) * 255


def affine(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random affine map of each image, uint8 [n, 28, 28] to float32 [n, 28, 28].

    Rotation up to 12 degrees, scale 0.9 to 1.1, shear up to 0.15, shift up to 2 pixels.
    """

    def uniform(limit: float, *shape: int) -> torch.Tensor:
        values = torch.rand(len(x), *shape, generator=generator, device=x.device)
        return (values * 2 - 1) * limit

    angle, scale, shear = uniform(math.radians(12)), 1 + uniform(0.1), uniform(0.15)
    rows = torch.stack(
        [scale * angle.cos(), shear - scale * angle.sin(), scale * angle.sin(), scale * angle.cos()]
    )
    shift = uniform(2 / 14, 2, 1)  # in half widths, as affine_grid counts
    theta = torch.cat([rows.T.reshape(-1, 2, 2), shift], dim=2)
    images = x.float().unsqueeze(1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False).squeeze(1)


def _warp(images: torch.Tensor, mild: int, generator: torch.Generator) -> torch.Tensor:
    """An affine and an elastic map (Simard et al. 2003), in one resampling."""
    draw = Draw(len(images), generator)
    much = torch.zeros(len(images), 1, device=images.device)
    much[mild:] = 1

    def up_to(little: float, most: float, columns: int = 1) -> torch.Tensor:
        return draw.uniform(-1, 1, columns) * torch.lerp(
            torch.full_like(much, little), torch.full_like(much, most), much
        )

    angle, shear = up_to(math.radians(14), math.radians(38)), up_to(0.2, 0.45)
    # Smaller digits are the more common failure: sizes are 0.65 to 1.15 of the original.
    zoom = torch.exp(up_to(0.1, 0.25) + 0.12 * much)
    stretch = torch.exp(up_to(0.07, 0.15))
    cosine, sine = angle.cos(), angle.sin()
    across, down = zoom * stretch, zoom / stretch
    theta = torch.cat(
        [
            across * cosine,
            across * (shear * cosine - sine),
            up_to(2 / 14, 5 / 14),
            down * sine,
            down * (shear * sine + cosine),
            up_to(2 / 14, 5 / 14),
        ],
        dim=1,
    )
    grid = functional.affine_grid(theta.view(-1, 2, 3), list(images.shape), align_corners=False)
    elastic = draw.of(_warps(images.device)) * draw.uniform(0, 1 / 14)
    grid += elastic.permute(0, 2, 3, 1)
    # A tenth of the heavy ones as through ground glass.
    rough = Draw(round((len(images) - mild) / 10), generator)
    if rough.count:
        grid[-rough.count :] += rough.normal(SIDE, SIDE, 2) * rough.uniform(0, 1 / 14)
    return functional.grid_sample(images, grid, align_corners=False)


def _thicken(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    return torch.lerp(images, functional.max_pool2d(images, 3, 1, 1), draw.uniform(0, 1))


def _thin(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    return torch.lerp(images, -functional.max_pool2d(-images, 3, 1, 1), draw.uniform(0, 0.7))


def coarsen(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Thicken strokes, and reduce to 9 to 14 pixels a side and back: as small scans are."""
    widths = [
        images,
        functional.max_pool2d(images, 3, 1, 1),
        functional.max_pool2d(images, 5, 1, 2),
    ]
    width = draw.uniform(0, 2)
    thick = torch.where(
        width < 1,
        torch.lerp(widths[0], widths[1], width),
        torch.lerp(widths[1], widths[2], width - 1),
    )
    parts = []
    for part, side in zip(thick.tensor_split(6), range(9, 15), strict=True):
        if len(part):
            small = functional.adaptive_avg_pool2d(part, side)
            parts.append(functional.interpolate(small, SIDE, mode="bicubic").clamp(0, 1))
    return torch.cat(parts)


def _outline(images: torch.Tensor, _: Draw) -> torch.Tensor:
    """The morphological gradient."""
    edges = functional.max_pool2d(images, 3, 1, 1) - images
    return edges / edges.amax((1, 2, 3), keepdim=True).clamp(min=0.1)


def _blur(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    """A Gaussian kernel, longer in one direction than across it."""
    angle = draw.uniform(0, math.pi)
    x, y = _coordinates(images.device, 7)
    along = (x * angle.cos() + y * angle.sin()) / draw.uniform(0.3, 3)
    across = (y * angle.cos() - x * angle.sin()) / draw.uniform(0.3, 1)
    kernels = torch.exp(-(along**2 + across**2) / 2)
    kernels /= kernels.sum((2, 3), keepdim=True)
    groups = len(images)
    return functional.conv2d(images.transpose(0, 1), kernels, padding=3, groups=groups).transpose(
        0, 1
    )


def _scribble(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    return torch.maximum(images, draw.of(_scribbles(images.device)) * draw.uniform(0.4, 1))


def _paper(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Ink and paper of other tones, unevenly lit; one in ten has dark ink on light paper."""
    paper = draw.uniform(0, 0.7) + draw.of(_smooth(images.device)) * draw.uniform(0, 0.1)
    paper = paper.clamp(0, 1)
    ink = (paper + draw.uniform(0.25, 1.1)).clamp(max=1)
    written = torch.lerp(paper, ink, images)
    return torch.where(draw.uniform(0, 1) < 0.1, 1 - written, written)


def _blot(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Blots of one tone where a smooth field is high."""
    blots = ((draw.of(_smooth(images.device)) - draw.uniform(1, 1.8)) * 4).clamp(0, 1)
    return torch.lerp(images, draw.uniform(-0.3, 1.3).clamp(0, 1), blots)


def _invert(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Inverted between two parallel lines, or everywhere but there."""
    angle = draw.uniform(0, math.pi)
    x, y = _coordinates(images.device, SIDE)
    distance = (x * angle.cos() + y * angle.sin() - draw.uniform(-10, 10)).abs()
    is_inverted = (distance < draw.uniform(1.5, 8)) ^ (draw.uniform(0, 1) < 0.5)
    return torch.where(is_inverted, 1 - images, images)


def _cover(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    """A rectangle of one tone (DeVries and Taylor 2017, "Cutout")."""
    x, y = _coordinates(images.device, SIDE)
    is_covered = ((x - draw.uniform(-12, 12)).abs() < draw.uniform(1, 5)) & (
        (y - draw.uniform(-12, 12)).abs() < draw.uniform(1, 5)
    )
    return torch.where(is_covered, draw.uniform(-0.5, 1).clamp(min=0), images)


def _noise(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Gaussian noise, everywhere alike and with the square root of the tone."""
    everywhere = draw.uniform(-0.1, 0.28).clamp(min=0)
    with_tone = draw.uniform(-0.2, 0.4).clamp(min=0)
    spread = everywhere + with_tone * images.clamp(min=0).sqrt()
    return (images + draw.normal(1, SIDE, SIDE) * spread).clamp(0, 1)


def _specks(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    """A share of the pixels black, and as many white."""
    places, share = draw.uniform(0, 1, 1, SIDE, SIDE), draw.uniform(0, 0.125)
    images = torch.where(places < share, torch.zeros_like(images), images)
    return torch.where(places > 1 - share, torch.ones_like(images), images)


# The share of the heavily changed images that each is applied to, in this order.
_CHANGES: tuple[tuple[float, Callable[[torch.Tensor, Draw], torch.Tensor]], ...] = (
    (0.12, _thicken),
    (0.12, _thin),
    (0.2, coarsen),
    (0.15, _outline),
    (0.2, _blur),
    (0.5, _scribble),
    (0.2, _noise),
    (0.1, _specks),
    (0.35, _paper),
    (0.1, _blot),
    (0.3, _invert),
    (0.05, _cover),
)


@cache
def _coordinates(device: torch.device, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Across and down from the centre, in pixels, [side, side] each."""
    steps = torch.arange(side, dtype=torch.float32, device=device) - (side - 1) / 2
    down, across = torch.meshgrid(steps, steps, indexing="ij")
    return across, down


def _random_fields(channels: int, details: tuple[int, ...], seed: int) -> torch.Tensor:
    """Smooth fields of mean 0 and variance 1, as many of each detail: random grids, enlarged."""
    generator = torch.Generator().manual_seed(seed)
    fields = []
    for detail in details:
        coarse = torch.randn(_FIELDS // len(details), channels, detail, detail, generator=generator)
        fine = functional.interpolate(coarse, SIDE, mode="bicubic", align_corners=True)
        fields.append(fine / fine.std())
    return torch.cat(fields)


@cache
def _smooth(device: torch.device) -> torch.Tensor:
    """Light and blots, [n, 1, 28, 28]."""
    return _random_fields(1, (3, 4, 5, 7, 10), seed=0).to(device)


@cache
def _warps(device: torch.device) -> torch.Tensor:
    """Displacements across and down, [n, 2, 28, 28]."""
    return _random_fields(2, (6, 7, 8), seed=1).to(device)


@cache
def _scribbles(device: torch.device) -> torch.Tensor:
    """Coverage by a bent stroke, or by up to three straight ones, some dashed; [n, 1, 28, 28]."""
    draw = Draw(_FIELDS, torch.Generator().manual_seed(2))
    is_bent = draw.uniform(0, 1) < 0.45
    is_dashed = ~is_bent & (draw.uniform(0, 1) < 0.35)
    width, period = draw.uniform(0.3, 1.2), draw.uniform(2, 6)
    drawn = torch.zeros(_FIELDS, 1, SIDE, SIDE)
    end = draw.uniform(-3, 31, 2, 1, 1)
    # The first stroke is always there; a bent one has ten parts.
    for likely in (1, 0.6, 0.4, 0, 0, 0, 0, 0, 0, 0):
        # A bent stroke goes on from where it is; a straight one begins elsewhere.
        begin = torch.where(is_bent, end, draw.uniform(-3, 31, 2, 1, 1))
        near, far = begin + draw.uniform(-6, 6, 2, 1, 1), draw.uniform(-3, 31, 2, 1, 1)
        end = torch.where(is_bent, near, far)
        distance, along = _to_segment(begin, end)
        is_there = is_bent | (draw.uniform(0, 1) < likely)
        is_there = is_there & ~(is_dashed & (along / period % 1 > 0.6))
        drawn = torch.maximum(drawn, (width + 0.5 - distance).clamp(0, 1) * is_there)
    return drawn.to(device)


# Labels whose images are no digits when mirrored, and when turned by a quarter.
_MIRRORED = (3, 6, 7, 9)
_TURNED = (2, 3, 4, 5, 6, 7, 9)


def non_digits(x: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Make pictures that are no digits, for training to be unsure of (Hendrycks et al. 2019).

    Half are doodles; a quarter each are digits mirrored and turned by a quarter.

    Args:
        x: uint8 [n, 28, 28].
        labels: int64 [n].
        generator: on the same device.

    Returns:
        float32 [m, 28, 28], 0 to 255, changed as digits are; m is n / 16, or a little less.
    """
    count = max(1, len(x) // 64)

    def some(of: tuple[int, ...]) -> torch.Tensor:
        chosen = x[torch.isin(labels, torch.tensor(of, device=x.device))]
        order = torch.randperm(len(chosen), generator=generator, device=x.device)
        return chosen[order[:count]]

    doodles = Draw(2 * count, generator).of(_doodles(x.device)).squeeze(1)
    pictures = torch.cat([some(_MIRRORED).flip(2), some(_TURNED).rot90(1, (1, 2)), doodles])
    order = torch.randperm(len(pictures), generator=generator, device=x.device)
    return augment(pictures[order], generator)


@cache
def _doodles(device: torch.device) -> torch.Tensor:
    """Curves and glyphs, uint8 [n, 1, 28, 28].

    A curve goes through four to six random points. A glyph is three to five straight strokes
    between points of a lattice of 3 by 3, as letters are.
    """
    draw = Draw(_FIELDS, torch.Generator().manual_seed(3))
    width = draw.uniform(0.4, 1.6)
    lattice = draw.uniform(0, 3, 2, 10).floor() * 7 + 7 + draw.uniform(-1, 1, 2, 10)
    free = draw.uniform(4, 24, 2, 6)
    drawn = []
    for row, (points, parts) in enumerate(((4, 3), (5, 4), (6, 5))):
        of_row = slice(row * _FIELDS // 3, (row + 1) * _FIELDS // 3)
        glyphs = lattice[of_row, :, : 2 * parts][1::2]
        drawn += [
            curve(free[of_row, :, :points][::2], width[of_row][::2], 6),
            strokes(glyphs[..., ::2], glyphs[..., 1::2], width[of_row][1::2]),
        ]
    return (torch.cat(drawn) * 255).to(torch.uint8).to(device)


def curve(points: torch.Tensor, width: torch.Tensor, detail: int) -> torch.Tensor:
    """Coverage by a smooth curve, of cubic interpolation.

    Args:
        points: where it goes through, in pixels across and down, [n, 2, points].
        width: half of that of the curve, [n, 1, 1, 1].
        detail: ends of the straight strokes that it is made of, for each point.

    Returns:
        0 to 1, [n, 1, 28, 28].
    """
    ends = functional.interpolate(
        points.unsqueeze(2), (1, detail * points.shape[2]), mode="bicubic", align_corners=True
    ).squeeze(2)
    return strokes(ends[..., :-1], ends[..., 1:], width)


def strokes(begin: torch.Tensor, end: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """Coverage by straight strokes.

    Args:
        begin: where each begins, in pixels across and down, [n, 2, strokes].
        end: where each ends, likewise.
        width: half of that of all strokes, [n, 1, 1, 1].

    Returns:
        0 to 1, [n, 1, 28, 28].
    """
    coverage = torch.zeros(len(begin), 1, SIDE, SIDE)
    for a, b in zip(begin.unbind(2), end.unbind(2), strict=True):
        distance, _ = _to_segment(a[..., None, None], b[..., None, None])
        coverage = torch.maximum(coverage, (width + 0.5 - distance).clamp(0, 1))
    return coverage


def _to_segment(begin: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance of each pixel to segments between points [n, 2, 1, 1], and how far along it lies.

    Both are [n, 1, 28, 28] in pixels.
    """
    x, y = (plane + (SIDE - 1) / 2 for plane in _coordinates(begin.device, SIDE))
    step = end - begin
    length = step.norm(dim=1, keepdim=True).clamp(min=0.03)
    step = step / length
    offset_x, offset_y = x - begin[:, :1], y - begin[:, 1:]
    along = (offset_x * step[:, :1] + offset_y * step[:, 1:]).clamp(min=0).minimum(length)
    return torch.hypot(offset_x - along * step[:, :1], offset_y - along * step[:, 1:]), along
