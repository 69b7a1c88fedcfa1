"""MNIST-C's corruptions: their published parameters, and what each does to pixels."""

import numpy as np
import pytest
from numpy.typing import NDArray

from training.corruptions import DATA_SET_SEVERITY, KINDS, SEVERITIES, corrupt
from training.data import Data


@pytest.fixture(scope="module")
def digits(mnist_data: Data) -> NDArray[np.uint8]:
    images: NDArray[np.uint8] = mnist_data.validation.x[:600].numpy()
    return images


def test_kinds_are_those_of_the_paper() -> None:
    assert (
        *("shot_noise", "impulse_noise", "glass_blur", "motion_blur", "shear", "scale", "rotate"),
        *("brightness", "translate", "stripe", "fog", "spatter", "dotted_line", "zigzag"),
        "canny_edges",
    ) == KINDS


def test_strengths_are_those_of_the_data_set() -> None:
    assert {kind: SEVERITIES[kind][at - 1] for kind, at in DATA_SET_SEVERITY.items()} == {
        "shot_noise": 3,
        "impulse_noise": 0.17,
        "glass_blur": (0.7, 1, 2),
        "motion_blur": (10, 3),
        "shear": 0.4,
        "scale": 0.7,
        "rotate": 0.4,
        "brightness": 0.5,
        "translate": 3,
        "fog": (3.0, 1.4),
        "spatter": (0.65, 0.3, 1.0, 0.65, 1.5),
    }
    assert SEVERITIES.keys() == DATA_SET_SEVERITY.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_gives_same_bytes_and_changes_every_image(
    kind: str, digits: NDArray[np.uint8]
) -> None:
    before = digits.copy()
    corrupted = corrupt(digits, kind, seed=3)
    assert (corrupted.shape, corrupted.dtype) == (digits.shape, digits.dtype)
    assert (digits == before).all()
    assert (corrupted != digits).any(axis=(1, 2)).all()
    assert (corrupt(digits, kind, seed=3) == corrupted).all()
    is_random = kind not in ("scale", "brightness", "stripe", "canny_edges")
    assert (corrupt(digits, kind, seed=4) != corrupted).any() == is_random


@pytest.mark.parametrize("kind", SEVERITIES)
def test_each_severity_is_another_strength(kind: str, digits: NDArray[np.uint8]) -> None:
    levels = [corrupt(digits[:50], kind, severity) for severity in range(1, 6)]
    assert len({level.tobytes() for level in levels}) == 5
    own = corrupt(digits[:50], kind)
    assert (levels[DATA_SET_SEVERITY[kind] - 1] == own).all()


@pytest.mark.parametrize(
    ("kind", "severity", "message"),
    [
        ("snow", None, "no such corruption: 'snow'; there are shot_noise, "),
        ("stripe", 2, "stripe has one strength only"),
        ("fog", 6, "fog has severities 1 to 5, got 6"),
        ("fog", 0, "fog has severities 1 to 5, got 0"),
    ],
)
def test_what_does_not_exist_is_refused(
    kind: str, severity: int | None, message: str, digits: NDArray[np.uint8]
) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt(digits[:1], kind, severity)


def test_images_of_another_form_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"expected uint8 \[n, 28, 28\], got float64 \[2, 28, 28\]"
    ):
        corrupt(np.zeros((2, 28, 28)), "fog")  # type: ignore[arg-type]


def test_no_images_stay_none() -> None:
    for kind in KINDS:
        assert corrupt(np.empty((0, 28, 28), np.uint8), kind).shape == (0, 28, 28)


def _dot(row: int, column: int, n: int = 400) -> NDArray[np.uint8]:
    """A white pixel on black, n times."""
    images = np.zeros((n, 28, 28), np.uint8)
    images[:, row, column] = 255
    return images


def test_impulse_noise_makes_a_share_of_pixels_black_or_white() -> None:
    gray = np.full((400, 28, 28), 100, np.uint8)
    noisy = corrupt(gray, "impulse_noise")
    assert (noisy == 255).mean() == pytest.approx(0.085, abs=0.003)
    assert (noisy == 0).mean() == pytest.approx(0.085, abs=0.003)
    assert set(np.unique(noisy)) == {0, 100, 255}


def test_shot_noise_counts_thirds() -> None:
    noisy = corrupt(np.full((400, 28, 28), 255, np.uint8), "shot_noise")
    assert set(np.unique(noisy)) == {0, 85, 170, 255}
    assert (noisy == 0).mean() == pytest.approx(np.exp(-3), abs=0.003)


def test_translation_is_of_three_pixels_both_ways() -> None:
    moved = corrupt(_dot(10, 14), "translate")
    assert {(int(row), int(column)) for _, row, column in np.argwhere(moved)} == {
        *((7, 11), (7, 17), (13, 11), (13, 17))
    }
    # What leaves the image is gone.
    corner = corrupt(_dot(0, 0), "translate")
    assert {(int(row), int(column)) for _, row, column in np.argwhere(corner)} == {(3, 3)}


def test_brightness_adds_half_of_white() -> None:
    levels = np.array([0, 100, 127, 128, 255], np.uint8)
    bright = corrupt(levels[:, None, None].repeat(28, 1).repeat(28, 2), "brightness")
    assert bright[:, 0, 0] == pytest.approx([127.5, 227.5, 254.5, 255, 255], abs=0.5)


def test_stripe_inverts_the_outer_quarters(digits: NDArray[np.uint8]) -> None:
    striped = corrupt(digits, "stripe")
    assert (striped[:, :, 7:21] == digits[:, :, 7:21]).all()
    outside = [*range(7), *range(21, 28)]
    assert (striped[:, :, outside] == 255 - digits[:, :, outside]).all()


def test_scale_shrinks_about_the_centre() -> None:
    square = np.zeros((1, 28, 28), np.uint8)
    square[:, 4:24, 4:24] = 255
    rows, columns = np.nonzero(corrupt(square, "scale")[0] > 127)
    # 20 pixels times 0.7, in the middle of 28.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (7, 20, 7, 20)


def test_rotation_is_of_04_radians_either_way() -> None:
    turned = corrupt(_dot(2, 14), "rotate").astype(float)
    columns = (turned.sum(axis=1) @ np.arange(28)) / turned.sum(axis=(1, 2))
    rows = (turned.sum(axis=2) @ np.arange(28)) / turned.sum(axis=(1, 2))
    angles = np.arctan2(columns - 13.5, 13.5 - rows) - np.arctan2(0.5, 11.5)
    assert np.abs(angles) == pytest.approx(0.4, abs=0.02)
    assert 0.4 < (angles > 0).mean() < 0.6


def test_shear_moves_rows_sideways() -> None:
    column = np.zeros((100, 28, 28), np.uint8)
    column[:, :, 13:15] = 255
    centres = corrupt(column, "shear").astype(float)
    places = (centres @ np.arange(28)) / centres.sum(axis=2).clip(1)
    assert np.abs(places[:, 6] - places[:, 20]) == pytest.approx(14 * np.sin(0.4), abs=0.3)


def test_motion_blur_takes_from_one_side_within_45_degrees() -> None:
    blurred = corrupt(_dot(14, 20), "motion_blur")
    _, rows, columns = np.nonzero(blurred)
    assert columns.max() == 20
    assert columns.min() >= 10
    # A whole coordinate may be rounded up from half a pixel less.
    assert (np.abs(rows - 14) <= 20 - columns + 1).all()
    assert len(set(rows)) > 10


def test_glass_blur_smears_columns_and_swaps_neighbours() -> None:
    line = np.zeros((300, 28, 28), np.uint8)
    line[:, :, 14] = 255
    blurred = corrupt(line, "glass_blur").astype(float)
    # Two passes of swaps with the pixel before: none comes further forward than a pass carries it.
    spread = blurred.mean(axis=(0, 1)) / 255
    assert spread.sum() == pytest.approx(1, abs=0.02)
    assert spread[14] < 0.6
    assert spread[[0, 27]].max() < 0.01
    # The outermost row is never swapped, and no row is blurred along itself.
    assert (blurred[:, 0] > 0).sum() < blurred[:, 14].size / 2


def test_fog_keeps_the_brightness_and_covers_the_paper(digits: NDArray[np.uint8]) -> None:
    foggy = corrupt(digits, "fog")
    assert (foggy.max(axis=(1, 2)) <= digits.max(axis=(1, 2))).all()
    means = foggy.mean(axis=(1, 2))
    # Half of 3 / (1 + 3) of white, as the landscape's corner is in the middle of its range.
    assert means.mean() == pytest.approx(255 * 0.4, abs=20)
    assert means.std() > 10
    blank = np.zeros((1, 28, 28), np.uint8)
    assert not corrupt(blank, "fog").any()


def test_spatter_is_dark_gray() -> None:
    muddy = corrupt(np.zeros((100, 28, 28), np.uint8), "spatter")
    assert muddy.max() == 63
    assert muddy[muddy > 0].min() >= round(63 * 0.8)
    assert 0.1 < (muddy > 0).mean() < 0.4


def test_dotted_line_has_two_columns_on_and_two_off() -> None:
    lines = corrupt(np.zeros((500, 28, 28), np.uint8), "dotted_line")
    used = lines.any(axis=(0, 1))
    # The last column is beyond the line's end.
    assert used.tolist() == [column % 4 >= 2 and column != 27 for column in range(28)]
    # On the line a pixel is white, and three rows off it nothing is drawn.
    assert lines.max() == 255
    assert (lines > 0).sum(axis=1).max() <= 5


def test_zigzag_runs_from_the_left_to_the_right() -> None:
    lines = corrupt(np.zeros((500, 28, 28), np.uint8), "zigzag")
    used = np.flatnonzero(lines.any(axis=(0, 1)))
    assert (used.min(), used.max()) == (2, 25)
    # Up and down by two pixels, on a line that rises by at most five, and two for its thickness.
    rows = np.argwhere(lines.any(axis=2))
    heights = [np.ptp(rows[rows[:, 0] == image, 1]) for image in range(500)]
    assert 4 <= max(heights) <= 2 * 2 + 5 + 2 * 2


def test_canny_edges_outline_a_square() -> None:
    square = np.zeros((2, 28, 28), np.uint8)
    square[0, 8:20, 8:20] = 150  # so that the steepest place is one pixel, and not between two
    square[0, 9:19, 9:19] = 255
    square[1] = square[0] // 100  # too weak
    edges = corrupt(square, "canny_edges")
    assert set(np.unique(edges[0])) == {0, 255}
    assert (edges[0, 11:17] > 0).sum(axis=1).tolist() == [2] * 6
    assert not edges[0, 11:17, 11:17].any()
    assert not edges[0, :6].any()
    assert not edges[1].any()
