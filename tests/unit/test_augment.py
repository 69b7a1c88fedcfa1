from collections.abc import Callable

import pytest
import torch

from training.augment import MILD_SHARE, affine, augment, non_digits

Change = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def bars(count: int) -> torch.Tensor:
    """Upright strokes in the middle, as ones are."""
    images = torch.zeros(count, 28, 28, dtype=torch.uint8)
    images[:, 6:22, 12:16] = 255
    return images


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("change", [affine, augment])
@pytest.mark.parametrize("count", [1, 3, 64])
def test_the_same_generator_changes_any_number_of_images_alike(change: Change, count: int) -> None:
    changed = change(bars(count), generator())
    assert changed.shape == (count, 28, 28)
    assert changed.dtype == torch.float32
    assert changed.min() >= 0
    assert changed.max() <= 255.01  # interpolation rounds
    assert changed.equal(change(bars(count), generator()))


@pytest.mark.parametrize("share", [MILD_SHARE, 0.9])
def test_the_first_are_changed_a_little_and_the_last_much(share: float) -> None:
    images = bars(1000)
    changed = augment(images, generator(), share)
    mild = round(share * len(images))
    ink = changed.sum((1, 2)) / images.sum((1, 2))
    assert ink[:mild].min() > 0.4
    assert ink[:mild].max() < 2
    assert not changed[0].equal(changed[1])
    difference = (changed - images).abs().mean((1, 2))
    assert difference[mild:].mean() > 2 * difference[:mild].mean()


def test_non_digits_are_no_digits_of_the_batch() -> None:
    labels = torch.arange(10).repeat(64)
    made = non_digits(bars(640), labels, generator())
    assert made.shape == (40, 28, 28)
    assert made.dtype == torch.float32
    assert made.equal(non_digits(bars(640), labels, generator()))
    assert len({tuple(picture.flatten().tolist()) for picture in made}) == len(made)


def test_a_batch_of_symmetric_digits_gives_doodles_alone() -> None:
    assert non_digits(bars(640), torch.ones(640, dtype=torch.int64), generator()).shape[0] == 20
