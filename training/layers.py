"""Fully connected networks from settings."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

from training.settings import Settings

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
}
# Of weights and of biases; torch's own are drawn when a layer is made.
_INITIALISATIONS: dict[str, tuple[Callable[[torch.Tensor], object], ...]] = {
    "torch": (),
    "normal": (nn.init.normal_, nn.init.normal_),
    "xavier": (nn.init.xavier_normal_, nn.init.zeros_),
    "kaiming": (nn.init.kaiming_normal_, nn.init.zeros_),
}


def fully_connected(inputs: int, outputs: int, settings: Settings) -> nn.Sequential:
    """From [n, inputs] to [n, outputs]: linear layers, and what the settings put between them."""
    widths = (inputs, *settings.hidden)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers.append(_linear(before, after, settings))
        if settings.batch_norm:
            layers.append(nn.BatchNorm1d(after))
        layers.append(_ACTIVATIONS[settings.activation]())
        if settings.dropout:
            layers.append(nn.Dropout(settings.dropout))
    return nn.Sequential(*layers, _linear(widths[-1], outputs, settings))


def _linear(inputs: int, outputs: int, settings: Settings) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    initialise = _INITIALISATIONS[settings.initialisation]
    for fill, tensor in zip(initialise, (layer.weight, layer.bias), strict=False):
        fill(tensor)
    return layer
