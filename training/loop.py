"""The training loop: seeded, with a progress bar."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from tqdm import tqdm

from training.data import Split
from training.export import ServedModel
from training.recipe import Recipe


@dataclass(frozen=True)
class Optimizer:
    """An optimizer that the command line offers.

    Attributes:
        make: from parameters, `lr` and `weight_decay` to the optimizer.
        learning_rate: used where neither the command line nor the recipe sets one.
    """

    make: Callable[..., torch.optim.Optimizer]
    learning_rate: float


OPTIMIZERS = {
    "sgd": Optimizer(torch.optim.SGD, 0.1),
    "momentum": Optimizer(partial(torch.optim.SGD, momentum=0.9, nesterov=True), 0.05),
    "adam": Optimizer(torch.optim.Adam, 3e-3),
    "adamw": Optimizer(torch.optim.AdamW, 3e-3),
    "nadam": Optimizer(torch.optim.NAdam, 2e-3),
}


def seed_everything(seed: int) -> None:
    """Make what follows reproducible bit for bit on the same machine with as many threads.

    Torch raises where an operation has no deterministic implementation.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by CUDA
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)


def fit(model: ServedModel, recipe: Recipe, train: Split, *, seed: int, description: str) -> None:
    """Fit the network of a model to a training split, and leave it in evaluation mode.

    Args:
        model: on the device to train on.
        recipe: epochs, optimizer, loss and augmentation.
        train: on the same device.
        seed: of the order of instances and of the augmentation.
        description: label of the progress bar.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(recipe.batch_size or len(train), len(train))
    steps = recipe.epochs * (len(train) // size)
    optimizer = OPTIMIZERS[recipe.optimizer].make(
        model.network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = (
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.2
        )
        if recipe.one_cycle
        else None
    )
    model.train()
    # Without a terminal, a line every 10 s is enough for a log.
    with tqdm(total=steps, desc=description, unit="step", mininterval=_interval()) as progress:
        for order in _batches(len(train), size, recipe.epochs, generator):
            x = train.x[order]
            if recipe.augment:
                x = recipe.augment(x, generator)
            loss = recipe.loss(model.raw(x), train.y[order])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule:
                schedule.step()
            progress.update()
    model.eval()


def _interval() -> float:
    return 0.2 if sys.stderr.isatty() else 10.0


def _batches(
    count: int, size: int, epochs: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Indices of each batch; the incomplete batch at the end of an epoch is dropped."""
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        yield from order[: count // size * size].split(size)
