"""What a model module defines; everything else is the pipeline's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from training.data import Data

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# From instances as in the data, and a generator, to instances of the same shape.
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class NetworkOptions:
    """Options of a fully connected network that the command line offers.

    Attributes:
        hidden: width of each hidden layer.
        dropout: probability after each hidden layer.
        batch_norm: whether each hidden layer is normalised over the batch.
    """

    hidden: tuple[int, ...] = (512, 256)
    dropout: float = 0.0
    batch_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network and the thresholds that it must reach.

    Attributes:
        build: makes the network, its weights drawn from torch's global generator. The network maps
            normalised float32 [n, ...] to what `Recipe.loss` takes.
        min_accuracy: on the validation split; a model below it is discarded.
        min_confidence: smallest probability of any validation label, likewise.
        has_options: whether `NetworkOptions` mean anything to it.
    """

    build: Callable[[NetworkOptions], nn.Module]
    min_accuracy: float
    min_confidence: float = 0.0
    has_options: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained and served.

    Attributes:
        name: of the model, its archive and its handler module, `handler/{name}.py`.
        classes: a name for each label.
        input_shape: of one instance.
        input_bounds: smallest and largest number that a request may have, or None for every finite
            one.
        architectures: by name, the default first.
        data: loads the data set, given the cache directory.
        normalise: from instances, float32 [n, *input_shape], to the network's input.
        normalisation: description of `normalise`, for the model card.
        loss: of the network's output [n, ...] and the labels, int64 [n].
        probabilities: from the network's output to float32 [n, classes].
        augment: applied to each training batch, or None.
        epochs: passes over the training split.
        batch_size: None for the full batch.
        optimizer: its name in `training.loop.OPTIMIZERS`.
        learning_rate: peak where one_cycle, else constant.
        weight_decay: of the optimizer.
        one_cycle: whether the learning rate rises over the first fifth of all steps and falls
            over the rest (Smith and Topin 2017, "Super-convergence").
        attempts: how many seeds may be tried until one passes the gate.
        max_batch_size: requests that a worker takes at once.
        max_batch_delay: milliseconds that a request waits for others.
        usage: commands that show a request, with URL for that of the model.
    """

    name: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    architectures: Mapping[str, Architecture]
    data: Callable[[Path], Data]
    input_bounds: tuple[float, float] | None = None
    normalise: nn.Module = field(default_factory=nn.Identity)
    normalisation: str = "none"
    loss: Loss = functional.cross_entropy
    probabilities: nn.Module = field(default_factory=lambda: nn.Softmax(dim=1))
    augment: Augment | None = None
    epochs: int = 10
    batch_size: int | None = 128
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    one_cycle: bool = False
    attempts: int = 1
    max_batch_size: int = 64
    max_batch_delay: int = 1
    usage: tuple[str, ...] = ()
