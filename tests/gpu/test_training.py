"""Training on a GPU; without one, nothing here can be tested."""

import pytest
import torch

from tests.few_digits import few
from tests.serving import ROOT
from training.data import MNIST_DIR
from training.evaluation import evaluate
from training.export import ServedModel
from training.loop import Fitting, fit, seed_everything
from training.recording import Recorder
from training.registry import load_recipe
from training.settings import Settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def fitted(settings: Settings) -> tuple[ServedModel, float]:
    """The `cnn` fitted to few digits, and its validation accuracy."""
    data, recipe = few(ROOT / MNIST_DIR), load_recipe("mnist")
    architecture, device = recipe.architectures["cnn"], torch.device("cuda")
    seed_everything(settings.seed)
    model = ServedModel(recipe.normalise, architecture.build(settings)).to(device)
    fitting = Fitting(
        model, settings, data.train.to(device), augmentation=architecture.augmentation
    )
    fit(fitting, Recorder(data.validation), description="digits")
    return model, evaluate(model, data.validation.to(device)).accuracy


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_network_learns_the_same_bits_twice(precision: str) -> None:
    settings = Settings(
        epochs=10, learning_rate=6e-3, schedule="one_cycle", average_decay=0.9, precision=precision
    )
    (model, accuracy), (again, _) = fitted(settings), fitted(settings)
    assert accuracy > 0.85
    state, other = model.network.state_dict(), again.network.state_dict()
    assert all(state[name].equal(other[name]) for name in state)
