import pytest
import torch

from training.calibration import calibrate, expected_calibration_error


def of_two(confidence: list[float]) -> torch.Tensor:
    """Probabilities of two classes, the second of which is the answer."""
    p = torch.tensor(confidence, dtype=torch.float64)
    return torch.stack([1 - p, p], dim=1)


class TestExpectedCalibrationError:
    def test_by_hand(self) -> None:
        # Of 10 bins, 0.9 and 0.86 share one: accuracy 0.5, confidence 0.88. 0.6 and 0.7 do not, and
        # neither do 0.7 and 0.72: an upper edge belongs to its bin.
        probabilities = of_two([0.9, 0.86, 0.6, 0.7, 0.72])
        error = expected_calibration_error(probabilities, torch.tensor([1, 0, 1, 0, 1]), bins=10)
        assert error == pytest.approx((2 * 0.38 + 0.4 + 0.7 + 0.28) / 5)

    def test_certainty(self) -> None:
        assert expected_calibration_error(of_two([1, 1]), torch.tensor([1, 1])) == 0
        assert expected_calibration_error(of_two([1, 1]), torch.tensor([0, 0])) == 1

    def test_labels_drawn_from_the_probabilities_are_calibrated(self) -> None:
        generator = torch.Generator().manual_seed(0)
        probabilities = torch.rand(200_000, 4, generator=generator).softmax(dim=1)
        labels = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        assert expected_calibration_error(probabilities, labels) < 0.005
        sharper = (probabilities.log() * 2).softmax(dim=1)
        assert expected_calibration_error(sharper, labels) > 0.05

    def test_no_instances(self) -> None:
        with pytest.raises(ValueError, match="no instances"):
            expected_calibration_error(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


class TestCalibrate:
    @pytest.fixture
    def labelled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, and labels drawn from their softmax."""
        generator = torch.Generator().manual_seed(0)
        logits = 3 * torch.randn(20_000, 5, generator=generator)
        labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
        return logits, labels

    @pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
    def test_a_scale_is_found_again(
        self, factor: float, labelled: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        logits, labels = labelled
        calibration = calibrate(factor * logits, labels)
        assert calibration.method == "temperature"
        assert calibration.temperature == pytest.approx(factor, rel=0.02)
        assert calibration.ece_after < 0.01
        served = (factor * logits / calibration.temperature).softmax(dim=1)
        assert expected_calibration_error(served, labels) == pytest.approx(
            calibration.ece_after, abs=1e-6
        )

    def test_neighbours_are_less_likely(self, labelled: tuple[torch.Tensor, torch.Tensor]) -> None:
        logits, labels = labelled
        found = calibrate(2 * logits, labels).temperature

        def loss(temperature: float) -> float:
            return float(torch.nn.functional.cross_entropy(2 * logits / temperature, labels))

        assert loss(found) < min(loss(found * 1.02), loss(found / 1.02))

    def test_labels_that_are_all_right_decide_no_temperature(self) -> None:
        logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        calibration = calibrate(logits, torch.tensor([0, 1]))
        assert (calibration.method, calibration.temperature) == ("none", 1.0)
        assert calibration.ece_before == calibration.ece_after > 0.1
        assert "no temperature" in calibration.note
