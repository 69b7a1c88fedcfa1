"""`python -m training evaluate`: every figure of an archive, and the data that it measures with."""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from handler import scripted
from handler.batching import BatchHandler
from handler.errors import RequestError
from handler.mnist import MnistHandler
from tests.images import dark_on_light, encode, picture, png
from tests.untrained import make_card, served_model
from training import evaluate as module
from training.__main__ import main
from training.compare import Candidate
from training.corruptions import KINDS, SEVERITIES, corrupt, robustness
from training.data import Data, Split
from training.evaluate import auroc, figures, forward_times, optical_digits, read, size_of, text
from training.export import ServedModel, to_torchscript
from training.photographs import photographs
from training.registry import load_recipe


def candidate(name: str, architecture: str | None = None) -> Candidate:
    torch.manual_seed(0)
    example = torch.zeros(3, *load_recipe(name).input_shape)
    content = to_torchscript(served_model(name, architecture), example)
    return Candidate("an untrained network", make_card(name, content), content)


class Brightness(nn.Module):
    """Takes an image for a one if any pixel is bright, and for a zero otherwise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        is_bright = (x.flatten(1) > 127).any(dim=1).float()
        return torch.stack([1 - is_bright, is_bright], dim=1)


def test_the_image_path_is_the_handler_s(
    loaded: Callable[[type[BatchHandler], str], BatchHandler], mnist_data: Data
) -> None:
    handler = loaded(MnistHandler, "mnist")
    digit = mnist_data.validation.x[0]
    photographed = list(photographs(mnist_data.validation.x[:2], 0, "light"))
    scan = encode(dark_on_light(picture(digit).resize((140, 140)), (300, 200), (80, 30)), "JPEG")
    for data in (png(digit), scan, *photographed, *optical_digits()[0][:3]):
        assert read(data) == bytes(handler.parse_body(data).instances)
        value = {"b64": base64.b64encode(data).decode()}
        assert read(data) == bytes(handler.parse_instances([value])[0])


def test_a_picture_that_the_handler_refuses_is_a_mistake(mnist_data: Data) -> None:
    blank = png(torch.zeros(60, 60, dtype=torch.uint8))
    with pytest.raises(RequestError):
        read(blank)
    digit = png(mnist_data.validation.x[0])
    labels = torch.tensor([1, 1, 0, 1])
    assert module._accuracy(Brightness(), [digit, blank, digit, digit], labels) == 0.5


def test_optical_digits_are_pictures_of_all_ten() -> None:
    files, labels = optical_digits()
    assert len(files) == len(labels) == 1797
    assert np.bincount(labels).min() > 170
    image = Image.open(io.BytesIO(files[0]))
    assert (image.format, image.mode, image.size) == ("PNG", "L", (160, 160))


def test_auroc_counts_pairs() -> None:
    digits, others = np.array([0.9, 0.8, 0.5], np.float32), np.array([0.7, 0.5], np.float32)
    assert auroc(digits, others) == pytest.approx((2 + 2 + 0.5) / 6)
    assert auroc(digits + 1, others) == 1


def test_size_is_counted_in_the_torchscript() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, bias=False),  # to 13x13
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 13 * 13, 10),
    )
    served = ServedModel(load_recipe("mnist").normalise, network).eval()
    x = torch.zeros(1, 28, 28, dtype=torch.uint8)
    size = size_of(torch.jit.load(io.BytesIO(to_torchscript(served, x))), x)
    assert size.multiply_adds == 13 * 13 * 4 * 9 + 4 * 13 * 13 * 10
    # Normalisation is folded into the convolution, which has a bias then. One is the temperature.
    assert size.parameters == 4 * 9 + 4 + 4 * 13 * 13 * 10 + 10 + 1
    # A module that is not frozen counts the same.
    assert size_of(torch.jit.script(nn.Linear(28, 3)), x[0].float()).parameters == 28 * 3 + 3


def test_weights_are_prepacked_as_in_the_handler() -> None:
    assert module._PREPACKED_FROM == scripted._PREPACKED_FROM


def test_forward_is_timed_beside_another() -> None:
    side = candidate("xor")
    threads = torch.get_num_threads()
    alone, beside = (forward_times(side, torch.zeros(4, 2), other) for other in (None, side))
    assert torch.get_num_threads() == threads
    assert alone.keys() == beside.keys() == {"1", "16"}
    for times in alone.values():
        assert times.keys() == {"microseconds"}
    for times in beside.values():
        assert times["microseconds"] > 0
        assert times["ratio"] > 0


def test_robustness_is_accuracy_by_kind() -> None:
    images = np.zeros((20, 28, 28), np.uint8)
    labels = np.zeros(20, np.int64)
    labels[:5] = 1
    accuracy = robustness(Brightness(), images, labels)
    assert tuple(accuracy) == KINDS
    expected = {kind: bool((corrupt(images, kind) > 127).any()) for kind in KINDS}
    assert accuracy["fog"] == 0.75
    assert accuracy["stripe"] == accuracy["zigzag"] == 0.25
    assert not expected["fog"]
    assert expected["stripe"]
    assert robustness(Brightness(), images, labels, severity=1).keys() == SEVERITIES.keys()


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch, mnist_data: Data) -> None:
    """The evaluation has 200 images of MNIST, and 20 of other writers."""
    files, labels = optical_digits()
    monkeypatch.setattr(module, "optical_digits", lambda: (files[:20], labels[:20]))
    test = Split(mnist_data.validation.x[:200], mnist_data.validation.y[:200])
    data = Data(test, test, test)

    monkeypatch.setattr(
        module, "load_recipe", lambda name: replace(load_recipe(name), data=lambda _: data)
    )


def _leaves(tree: dict[str, Any]) -> list[Any]:
    return [
        leaf
        for value in tree.values()
        for leaf in (_leaves(value) if isinstance(value, dict) else [value])
    ]


@pytest.mark.usefixtures("few_digits")
def test_every_figure_of_a_digit_model() -> None:
    model = candidate("mnist")
    trees = [
        figures(model, Path("unused"), photographs_of_each=3, strangers_of_each=30)
        for _ in range(2)
    ]
    for tree in trees:
        assert tree.pop("forward").keys() == {"1", "16"}
    tree = trees[0]
    assert trees[1] == tree
    assert tree["test"]["instances"] == 200
    assert tree["mnist_c"]["accuracy"].keys() == set(KINDS)
    assert tree["mnist_c"]["worst"] == min(tree["mnist_c"]["accuracy"].values())
    assert tree["photographs"].keys() == {"instances", "dark", "light"}
    assert tree["optical_digits"]["instances"] == 20
    # An untrained network says nothing.
    assert tree["test"]["accuracy"] < 0.3
    assert tree["auroc"].keys() == {"letters", "doodles", "noise", "mean"}
    assert all(0 <= leaf <= 1 for leaf in _leaves({"a": tree["auroc"], "b": tree["mnist_c"]}))
    assert json.loads(json.dumps(tree)) == tree


def test_figures_of_xor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = candidate("xor")
    monkeypatch.setattr("training.compare.candidate", lambda _: model)
    file = tmp_path / "figures.json"
    assert main(["evaluate", "xor", "--json", str(file), "--beside", "xor"]) == 0
    tree = json.loads(file.read_text())
    corners = load_recipe("xor").data(Path("unused")).test
    probabilities = torch.jit.load(io.BytesIO(model.torchscript))(corners.x)
    of_label = probabilities[torch.arange(4), corners.y]
    assert tree["test"] == {
        "instances": 4,
        "accuracy": float((probabilities.argmax(dim=1) == corners.y).double().mean()),
        "log_loss": pytest.approx(-of_label.log().mean().item()),
        "min_confidence": pytest.approx(of_label.min().item()),
    }
    assert (tree["parameters"], tree["multiply_adds"]) == (9, 6)
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["test instances"].strip() == "4"
    assert text(tree).count("of an untrained network") == 2


def test_a_reference_to_nothing_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "absent.mar"]) == 1
    assert "absent.mar cannot be read" in capsys.readouterr().err
