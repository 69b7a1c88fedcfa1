"""`python -m training`, with 1,000 images of MNIST, no gate, and a checkpoint after every epoch.

The process whose rank is in FAILING_RANK fails in the second epoch.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from training import checkpoints, pipeline, report, runs
from training.__main__ import main
from training.data import Data, Split
from training.errors import TrainingError
from training.loop import Fitting
from training.mnist_data import mnist
from training.recipe import Recipe
from training.registry import load_recipe

COUNT = 1000


def few(directory: Path) -> Data:
    data = mnist(directory)
    return Data(
        *(Split(s.x[:COUNT], s.y[:COUNT]) for s in (data.train, data.validation, data.test))
    )


def recipe(name: str) -> Recipe:
    whole = load_recipe(name)
    architectures = {
        name: replace(architecture, min_accuracy=0.0)
        for name, architecture in whole.architectures.items()
    }
    return replace(whole, data=few, architectures=architectures)


class Failing(Fitting):
    def step(self, x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.epoch == 1 and os.environ.get("FAILING_RANK") == str(self.group.rank):
            raise TrainingError("this process failed")
        return super().step(x, labels)


if __name__ == "__main__":
    runs.load_recipe = recipe  # type: ignore[attr-defined]
    pipeline.Fitting = Failing  # type: ignore[attr-defined]
    checkpoints._INTERVAL = 0.0
    report._CORRUPTED = 50  # in 59 ways, for a quarter of the time
    sys.exit(main())
