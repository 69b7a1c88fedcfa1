"""XOR: the smallest network that can learn it, two inputs, two hidden sigmoids, one output.

Recipe: the textbook's, full-batch gradient descent with learning rate 0.1 and binary cross-entropy
for 10,001 epochs, from normally distributed weights (Rumelhart, Hinton and Williams 1986 have the
network). With about every third seed it gets stuck in a saddle or a local minimum; the gate
detects that, and the pipeline starts again with the next seed.
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from training.data import Data, Split
from training.recipe import Architecture, NetworkOptions, Recipe


class BothClasses(nn.Module):
    """From one sigmoid output to the probabilities of both classes."""

    def forward(self, p: torch.Tensor) -> torch.Tensor:
        """From the probability of 1, [n, 1], to those of 0 and 1, [n, 2]."""
        return torch.cat([1 - p, p], dim=1)


def network(_: NetworkOptions) -> nn.Module:
    """From [n, 2] to the probability of 1, [n, 1]."""
    layers = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 1), nn.Sigmoid())
    for weights in layers.parameters():
        nn.init.normal_(weights)
    return layers


def corners(_: Path) -> Data:
    """The four corners of the unit square, which are the whole problem."""
    split = Split(
        torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 1, 1, 0])
    )
    return Data(train=split, validation=split, test=split)


def loss(p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy."""
    return functional.binary_cross_entropy(p.squeeze(1), labels.to(p.dtype))


RECIPE = Recipe(
    name="xor",
    classes=("0", "1"),
    input_shape=(2,),
    architectures={"mlp": Architecture(build=network, min_accuracy=1.0, min_confidence=0.9)},
    data=corners,
    loss=loss,
    probabilities=BothClasses(),
    epochs=10_001,
    batch_size=None,
    optimizer="sgd",
    learning_rate=0.1,
    attempts=10,
    usage=("""curl -d '{"instances": [[0, 1], [1, 1]]}' URL""",),
)
