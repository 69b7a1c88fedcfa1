"""A model that trains in a moment: which of two clouds a point belongs to."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.cache import Entry
from training.data import Data, Split
from training.pipeline import Run
from training.recipe import Architecture, Recipe
from training.settings import Settings
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
    architectures={
        "line": Architecture(
            build=lambda _: nn.Linear(2, 2),
            min_accuracy=0.8,
            settings=Settings(epochs=20, batch_size=10, learning_rate=0.1),
        )
    },
    data=blobs,
)


def run(recipe: Recipe = BLOBS, **changes: Any) -> Run:
    """A run with the settings of the recipe's one architecture, and changes."""
    ((name, architecture),) = recipe.architectures.items()
    return Run(
        recipe=recipe,
        architecture=name,
        settings=replace(architecture.settings, **changes),
        device=torch.device("cpu"),
        data_directory=Path("unused"),
    )


def trained(recipe: Recipe = BLOBS, **changes: Any) -> Entry:
    """An entry of the training cache."""
    entry = train(run(recipe, **changes))
    assert entry is not None
    return entry
