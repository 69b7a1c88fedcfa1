"""Pictures that are no digit."""

import numpy as np
import pytest

from training.strangers import KINDS, LETTERS, strangers


def test_letters_that_look_like_digits_are_left_out() -> None:
    assert set("OoIilSsZzBbGgqDQJjYy").isdisjoint(LETTERS)
    assert len(set(LETTERS)) == len(LETTERS) == 32


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_gives_same_pictures_of_all_sorts(kind: str) -> None:
    images = strangers(kind, 60, seed=1)
    assert (images.shape, images.dtype) == ((60, 28, 28), np.dtype(np.uint8))
    assert (strangers(kind, 20, seed=1) == images[:20]).all()
    assert (strangers(kind, 60, seed=2) != images).any(axis=(1, 2)).all()
    assert len({image.tobytes() for image in images}) == 60


@pytest.mark.parametrize("kind", ["letters", "doodles"])
def test_strokes_have_mnist_s_form(kind: str) -> None:
    images = strangers(kind, 60)
    assert (images.max(axis=(1, 2)) == 255).all()
    for image in images:
        rows, columns = np.nonzero(image)
        assert 18 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 20
        mass = image / image.sum()
        assert mass.sum(axis=1) @ np.arange(28) == pytest.approx(13.5, abs=2.5)
        assert 0.02 < (image > 127).mean() < 0.5


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(
        ValueError, match="no such kind: 'faces'; there are letters, doodles, noise"
    ):
        strangers("faces", 1)
