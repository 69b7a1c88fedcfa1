"""A model that trains in a moment: which of two clouds a point belongs to."""

from pathlib import Path

import torch
from torch import nn

from training.cache import Entry
from training.data import Data, Split
from training.pipeline import Run
from training.recipe import Architecture, NetworkOptions, Recipe
from training.train import train


def blobs(_: Path) -> Data:
    """Two clouds of points that a line separates."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 2
    x = torch.randn(300, 2, generator=generator) + 6 * y.unsqueeze(1)
    parts = [Split(x[i : i + 100], y[i : i + 100]) for i in (0, 100, 200)]
    return Data(*parts)


BLOBS = Recipe(
    name="xor",  # for its handler
    classes=("0", "1"),
    input_shape=(2,),
    architectures={"line": Architecture(build=lambda _: nn.Linear(2, 2), min_accuracy=0.8)},
    data=blobs,
    epochs=20,
    batch_size=10,
    learning_rate=0.1,
)


def run(recipe: Recipe = BLOBS, seed: int = 0) -> Run:
    return Run(
        recipe=recipe,
        architecture="line",
        network=NetworkOptions(),
        seed=seed,
        device=torch.device("cpu"),
        data_directory=Path("unused"),
    )


def trained(recipe: Recipe = BLOBS, seed: int = 0) -> Entry:
    """An entry of the training cache."""
    return train(run(recipe, seed))
