"""The training loop: seeded, with a progress bar."""

import os
import sys
from collections.abc import Callable, Iterator

import torch
from torch import nn
from tqdm import tqdm

from training.data import Split
from training.export import ServedModel
from training.losses import loss
from training.recipe import Augment
from training.settings import Settings

# Each takes `lr` and `weight_decay`.
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
}


def _optimizer(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    of_sgd = (
        {"momentum": settings.momentum, "nesterov": settings.nesterov}
        if settings.optimizer == "sgd"
        else {}
    )
    return _OPTIMIZERS[settings.optimizer](
        network.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        **of_sgd,
    )


def _schedule(
    optimizer: torch.optim.Optimizer, settings: Settings, steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    if settings.schedule == "one_cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.learning_rate, total_steps=steps, pct_start=0.2
        )
    if settings.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return None


def seed_everything(seed: int) -> None:
    """Make what follows reproducible bit for bit on the same machine with as many threads.

    Torch raises where an operation has no deterministic implementation.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by CUDA
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)


def fit(
    model: ServedModel,
    settings: Settings,
    train: Split,
    *,
    augment: Augment | None,
    description: str,
) -> None:
    """Fit the network of a model to a training split, and leave it in evaluation mode.

    Args:
        model: on the device to train on.
        settings: its seed decides the order of instances and the augmentation.
        train: on the same device.
        augment: applied to each batch, or None.
        description: label of the progress bar.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    size = min(settings.batch_size or len(train), len(train))
    steps = settings.epochs * (len(train) // size)
    optimizer = _optimizer(model.network, settings)
    schedule = _schedule(optimizer, settings, steps)
    model.train()
    # Without a terminal, a line every 10 s is enough for a log.
    with tqdm(total=steps, desc=description, unit="step", mininterval=_interval()) as progress:
        for order in _batches(len(train), size, settings.epochs, generator):
            x = train.x[order]
            if augment:
                x = augment(x, generator)
            value = loss(settings, model.logits(x), train.y[order])
            optimizer.zero_grad()
            value.backward()
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
