"""Makes the history of a training while it runs."""

import time
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from training.data import Split
from training.evaluation import evaluate
from training.history import SURFACE_HIGH, SURFACE_LOW, SURFACE_POINTS, Epoch, History, Surface
from training.loop import Fitting, Watch

# Of a long training; of a short one, every epoch is recorded.
_EPOCHS = 100
_SURFACES = 8
_GRADIENTS_PER_EPOCH = 16
_INSTANCES_FOR_DEAD_UNITS = 1000
# Below it, a derivative counts as 0: a sigmoid's is, at inputs under -7 and over 7.
_FLAT = 1e-3
_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.GELU, nn.SiLU)


class Recorder(Watch):
    """Records a training.

    Args:
        validation: what the model is evaluated on.
    """

    def __init__(self, validation: Split) -> None:
        self._validation = validation
        self._epochs: list[Epoch] = []
        self._surfaces: list[Surface] = []

    def history(self, *, model: str, architecture: str, settings: dict[str, Any]) -> History:
        """What was recorded since the last `begin`."""
        return History(
            model=model,
            architecture=architecture,
            settings=settings,
            seed=self._seed,
            epochs=tuple(self._epochs),
            surfaces=tuple(self._surfaces),
        )

    def begin(self, fitting: Fitting) -> None:
        """Forget what was recorded before, of another attempt."""
        self._seed = fitting.settings.seed
        self._epochs, self._surfaces = [], []
        self._validation = self._validation.to(_device(fitting.model))
        self._begin_epoch()
        self._record_surface(fitting)

    def step(
        self, fitting: Fitting, logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor
    ) -> None:
        """Add a step to the epoch's means."""
        if not _is_recorded(fitting.epoch + 1, fitting.settings.epochs):
            return
        self._losses.append(loss)
        self._accuracies.append((logits.argmax(dim=1) == labels).float().mean())
        if _is_chosen(len(self._losses), fitting.steps, _GRADIENTS_PER_EPOCH):
            for name, layer in weight_layers(fitting.model.network).items():
                gradient = layer.weight.grad
                assert isinstance(gradient, torch.Tensor)
                self._gradients[name].append(gradient.norm())

    def end_epoch(self, fitting: Fitting) -> None:
        """Evaluate the model and record the epoch, if it is one of those recorded."""
        if _is_recorded(fitting.epoch, fitting.settings.epochs):
            self._record_epoch(fitting)
        self._record_surface(fitting)
        self._begin_epoch()

    def state_dict(self) -> dict[str, Any]:
        """What was recorded, as plain values."""
        history = self.history(model="", architecture="", settings={})
        return {"history": history.to_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on recording after what `state_dict` returned."""
        history = History.from_json(state["history"])
        self._epochs, self._surfaces = list(history.epochs), list(history.surfaces)

    def _begin_epoch(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._accuracies: list[torch.Tensor] = []
        self._gradients: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._began = time.monotonic()

    def _record_epoch(self, fitting: Fitting) -> None:
        served = fitting.served.eval()
        validation = evaluate(served, self._validation)
        dead = dead_units(served, self._validation.x[:_INSTANCES_FOR_DEAD_UNITS])
        fitting.model.train()
        self._epochs.append(
            Epoch(
                number=fitting.epoch,
                learning_rate=fitting.learning_rate,
                train_loss=_mean(self._losses),
                train_accuracy=_mean(self._accuracies),
                validation_loss=validation.log_loss,
                validation_accuracy=validation.accuracy,
                gradient_norms={name: _mean(norms) for name, norms in self._gradients.items()},
                dead_units=dead,
                seconds=time.monotonic() - self._began,
            )
        )

    def _record_surface(self, fitting: Fitting) -> None:
        epoch, epochs = fitting.epoch, fitting.settings.epochs
        if self._validation.x.shape[1:] != (2,) or not _is_chosen(epoch, epochs, _SURFACES):
            return
        served = fitting.served.eval()
        self._surfaces.append(Surface(epoch=epoch, probabilities=_surface(served)))
        fitting.model.train()


def weight_layers(network: nn.Module) -> dict[str, Any]:
    """Layers with a matrix of weights, by kind and number, such as `Linear 1`, in order."""
    weights = ((layer, getattr(layer, "weight", None)) for layer in network.modules())
    return _named([layer for layer, w in weights if isinstance(w, torch.Tensor) and w.dim() > 1])


@torch.no_grad()
def dead_units(model: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Share of each activation's units whose derivative is nearly 0 for all instances.

    No gradient passes such a unit, so it learns nothing any more. A unit of a convolution is a
    channel, dead if it is at all positions. An activation that is the network's last layer is left
    out: there, to be saturated is to be sure.

    Args:
        model: in evaluation mode; its `network` holds the activations.
        x: instances [n, *input_shape].

    Returns:
        Shares by kind and number of the activation, such as `ReLU 1`, in order.
    """
    network = model.network
    assert isinstance(network, nn.Module)
    *layers, _ = (m for m in network.modules() if not list(m.children()))
    activations = _named([layer for layer in layers if isinstance(layer, _ACTIVATIONS)])
    shares: dict[str, float] = {}

    def look(name: str, layer: nn.Module, x: torch.Tensor) -> None:
        with torch.enable_grad():
            inputs = x.detach().clone().requires_grad_()
            (derivative,) = torch.autograd.grad(layer.forward(inputs.clone()).sum(), inputs)
        flat = derivative.abs() < _FLAT
        flat = flat.transpose(0, 1).flatten(1).all(dim=1)
        shares[name] = flat.float().mean().item()

    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, inputs, name=name: look(name, layer, inputs[0])
        )
        for name, layer in activations.items()
    ]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return shares


def _named(layers: list[nn.Module]) -> dict[str, Any]:
    return {f"{type(layer).__name__} {i}": layer for i, layer in enumerate(layers, start=1)}


def _is_recorded(epoch: int, epochs: int) -> bool:
    return epoch == 1 or _is_chosen(epoch, epochs, _EPOCHS)


def _is_chosen(number: int, count: int, wanted: int) -> bool:
    """Whether a number up to a count is 0 or one of as many as wanted, evenly spread to the last.

    Where fewer than wanted are there, all are.
    """
    return number * wanted // count > (number - 1) * wanted // count


def _mean(values: list[torch.Tensor]) -> float:
    return torch.stack(values).mean().item()


@torch.inference_mode()
def _surface(model: nn.Module) -> tuple[tuple[float, ...], ...]:
    axis = torch.linspace(SURFACE_LOW, SURFACE_HIGH, SURFACE_POINTS, device=_device(model))
    second, first = torch.meshgrid(axis, axis, indexing="ij")
    answers = model(torch.stack([first, second], dim=2).flatten(0, 1))[:, -1]
    rows = answers.reshape(SURFACE_POINTS, SURFACE_POINTS).tolist()
    return tuple(tuple(round(value, 4) for value in row) for row in rows)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
