import math

import pytest
import torch
from torch import nn

from tests.unit.test_loop import fitting, points
from training.data import Split
from training.export import ServedModel
from training.history import SURFACE_POINTS, History
from training.loop import fit
from training.recording import Recorder, dead_units, weight_layers
from training.settings import Settings


def recorded(settings: Settings) -> History:
    recorder = Recorder(points())
    fit(fitting(settings), recorder, description="points")
    return recorder.history(model="points", architecture="mlp", settings={})


def test_every_epoch_of_a_short_training_is_recorded() -> None:
    history = recorded(Settings(epochs=3, batch_size=8, learning_rate=0.05, seed=4))
    assert [epoch.number for epoch in history.epochs] == [1, 2, 3]
    assert history.seed == 4
    last = history.epochs[-1]
    assert list(last.gradient_norms) == ["Linear 1", "Linear 2"]
    assert all(norm > 0 for norm in last.gradient_norms.values())
    assert list(last.dead_units) == ["ReLU 1"]
    assert last.learning_rate == 0.05
    assert last.train_loss < history.epochs[0].train_loss
    assert last.validation_accuracy > 0.5


def test_a_long_training_is_recorded_at_a_hundred_moments() -> None:
    history = recorded(Settings(epochs=1001, batch_size=0, optimizer="sgd"))
    numbers = [epoch.number for epoch in history.epochs]
    assert len(numbers) == 101
    assert (numbers[0], numbers[-1]) == (1, 1001)
    assert [surface.epoch for surface in history.surfaces][::8] == [0, 1001]
    assert [len(surface.probabilities) for surface in history.surfaces] == [SURFACE_POINTS] * 9


def test_the_surface_has_the_second_input_in_rows() -> None:
    history = recorded(Settings(epochs=1, batch_size=8))
    training = fitting(Settings(epochs=1, batch_size=8))
    surface = history.surfaces[0].probabilities  # of the initial weights
    training.model.eval()
    with torch.inference_mode():
        answer = training.model(torch.tensor([[-0.5 + 30 / 16, -0.5 + 3 / 16]]))[0, 1]
    assert surface[3][30] == pytest.approx(answer.item(), abs=1e-4)


def test_recording_changes_no_weight() -> None:
    settings = Settings(epochs=2, batch_size=8)
    watched, alone = fitting(settings), fitting(settings)
    fit(watched, Recorder(points()), description="points")
    while alone.epoch < settings.epochs:
        alone.model.train()
        for x, labels in alone.batches():
            alone.step(x, labels)
        alone.epoch += 1
    for one, other in zip(
        watched.model.network.parameters(), alone.model.network.parameters(), strict=True
    ):
        assert one.equal(other)


def test_what_was_recorded_survives_an_interruption() -> None:
    recorder, other = Recorder(points()), Recorder(points())
    fit(fitting(), recorder, description="points")
    other.begin(fitting())
    other.load_state_dict(recorder.state_dict())
    names = {"model": "points", "architecture": "mlp", "settings": {}}
    assert other.history(**names) == recorder.history(**names)  # type: ignore[arg-type]


def test_gradient_norms_are_those_of_the_weights() -> None:
    training = fitting(Settings(epochs=1, batch_size=0))
    recorder = Recorder(Split(points().x, points().y))
    fit(training, recorder, description="points")
    (epoch,) = recorder.history(model="", architecture="", settings={}).epochs
    for name, layer in weight_layers(training.model.network).items():
        assert epoch.gradient_norms[name] == pytest.approx(layer.weight.grad.norm().item())


class TestDeadUnits:
    @staticmethod
    def of(activation: nn.Module, biases: list[float]) -> float:
        linear = nn.Linear(1, len(biases))
        nn.init.ones_(linear.weight)
        linear.bias.data = torch.tensor(biases, dtype=torch.float32)
        network = nn.Sequential(linear, activation, nn.Linear(len(biases), 2))
        model = ServedModel(nn.Identity(), network).eval()
        (share,) = dead_units(model, torch.linspace(-1, 1, 20).unsqueeze(1)).values()
        return share

    def test_a_relu_under_zero_is_dead_and_a_leaky_one_is_not(self) -> None:
        assert self.of(nn.ReLU(), [-2, -2, 0, 0.5]) == 0.5
        assert self.of(nn.ReLU(inplace=True), [-2, -2, 0, 0.5]) == 0.5
        assert self.of(nn.LeakyReLU(), [-2, -2, 0, 0.5]) == 0

    def test_a_saturated_sigmoid_is_dead_on_either_side(self) -> None:
        assert self.of(nn.Sigmoid(), [-20, 20, 0, 7]) == 0.5
        assert self.of(nn.Tanh(), [-20, 20, 0, 2]) == 0.5

    def test_a_channel_is_dead_if_it_is_everywhere(self) -> None:
        convolution = nn.Conv2d(1, 4, 3)
        nn.init.zeros_(convolution.weight)
        convolution.weight.data[3, 0, 0, 0] = 1
        convolution.bias.data = torch.tensor([-1.0, -1.0, 1.0, -1.0])  # type: ignore[union-attr]
        network = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        x = torch.zeros(3, 1, 4, 4)
        x[2, 0, 1, 1] = 5
        model = ServedModel(nn.Identity(), network).eval()
        assert dead_units(model, x) == {"ReLU 1": 0.5}

    def test_the_output_is_not_a_hidden_layer(self) -> None:
        network = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())
        assert dead_units(ServedModel(nn.Identity(), network).eval(), points().x) == {}


def test_a_diverged_training_is_recorded_as_such() -> None:
    history = recorded(Settings(epochs=2, batch_size=8, optimizer="sgd", learning_rate=1e30))
    assert math.isnan(history.epochs[-1].train_loss)
    assert History.from_json(history.to_json()).epochs[-1].number == 2
