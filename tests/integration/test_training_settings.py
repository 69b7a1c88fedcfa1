"""What a training does with its settings, and what its card says of them."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.blobs import BLOBS, blobs, trained
from tests.serving import ROOT
from training import cache
from training.__main__ import main
from training.data import Data

EXAMPLE = ROOT / "training" / "example.toml"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINING_CACHE", str(tmp_path / "cache"))


def test_the_example_trains_xor() -> None:
    assert main(["train", "xor", "--config", str(EXAMPLE)]) == 0
    settings = cache.newest("xor").card.settings
    assert settings.items() >= {"activation": "tanh", "loss": "mse", "epochs": 500}.items()


class TestCard:
    def test_it_has_the_settings_that_decided_the_weights(self) -> None:
        settings = trained(hidden=(3,), weight_decay=0.1).card.settings
        assert settings["weight_decay"] == 0.1
        assert "hidden" not in settings

    def test_it_has_the_temperature_of_the_torchscript(self) -> None:
        def noisy(directory: Path) -> Data:
            """Every ninth label is wrong, which no line can learn."""
            data = blobs(directory)
            for split in (data.train, data.validation, data.test):
                split.y[::9] = 1 - split.y[::9]
            return data

        entry = trained(replace(BLOBS, data=noisy), label_smoothing=0.5)
        calibration, x = entry.card.calibration, blobs(Path()).test.x
        assert calibration["method"] == "temperature"
        assert calibration["ece_after"] < calibration["ece_before"]
        network = nn.Linear(2, 2)
        network.load_state_dict(torch.load(entry.directory / "weights.pt", weights_only=True))
        scripted = torch.jit.load(io.BytesIO(entry.torchscript))
        with torch.inference_mode():
            expected = (network(x) / calibration["temperature"]).softmax(dim=1)
            assert torch.allclose(scripted(x), expected, atol=1e-6)

    def test_it_says_why_there_is_no_temperature(self) -> None:
        assert main(["train", "xor", "--config", str(EXAMPLE)]) == 0
        calibration = cache.newest("xor").card.calibration
        assert (calibration["method"], calibration["temperature"]) == ("none", 1.0)
        assert "no temperature" in calibration["note"]
