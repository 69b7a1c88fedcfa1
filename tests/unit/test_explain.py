import pytest
import torch

from handler.explain import Occlusion


def brightest(instances: torch.Tensor) -> torch.Tensor:
    """Class 1 as probable as the number in the corner is near 1, so that only that one counts."""
    assert instances.dtype == torch.float32
    assert 0 < len(instances) <= 64
    one = instances.flatten(1)[:, 0].double()
    return torch.stack([1 - one, one], dim=1)


def test_numbers_are_hidden_one_by_one() -> None:
    explain = Occlusion(brightest, (3,), baseline=0.5)
    instances = torch.tensor([[0.875, 1.0, 0.5], [0.25, 0.0, 0.0]])
    attributions = explain(instances, brightest(instances))
    assert attributions.tolist() == [[0.375, 0, 0], [0.25, 0, 0]]
    assert attributions.dtype == torch.float64


def test_windows_of_a_picture() -> None:
    """Four windows of 4x4 hold a pixel; all that hold the corner reach no farther than 4."""
    explain = Occlusion(brightest, (28, 28), baseline=0.0)
    instances = torch.ones(1, 28, 28, dtype=torch.uint8)
    (attributions,) = explain(instances, brightest(instances.float()))
    assert attributions[:2, :2].tolist() == [[1, 1], [1, 1]]
    assert attributions[:2, 2:4].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert attributions[2:4, 2:4].tolist() == [[0.25, 0.25], [0.25, 0.25]]
    assert attributions[4:].count_nonzero() == attributions[:, 4:].count_nonzero() == 0


def test_channels_are_hidden_together() -> None:
    explain = Occlusion(brightest, (3, 5, 7), baseline=0.0)
    instances = torch.ones(2, 3, 5, 7)
    attributions = explain(instances, brightest(instances))
    assert attributions.shape == (2, 3, 5, 7)
    assert torch.equal(attributions[:, 0], attributions[:, 2])
    assert attributions[0, 0, 0, 0] == 1


def test_where_there_is_nothing_to_hide() -> None:
    def fail(_: torch.Tensor) -> torch.Tensor:
        pytest.fail("asked")

    explain = Occlusion(fail, (28, 28), baseline=0.0)
    instances = torch.zeros(2, 28, 28, dtype=torch.uint8)
    assert explain(instances, torch.tensor([[0.5, 0.5]] * 2)).count_nonzero() == 0
