import torch

from training.drawn import COUNT, drawn_digits


def test_drawn_digits_are_as_mnists_and_always_the_same() -> None:
    digits = drawn_digits()
    assert digits.x.shape == (10 * COUNT, 28, 28)
    assert digits.x.dtype == torch.uint8
    assert digits.y.bincount().tolist() == [COUNT] * 10
    ink = digits.x.flatten(1).float().mean(1)
    assert ink.min() > 5
    assert digits.x.equal(drawn_digits().x)


def test_no_two_drawn_digits_are_alike() -> None:
    assert len(drawn_digits().x.flatten(1).unique(dim=0)) == 10 * COUNT
