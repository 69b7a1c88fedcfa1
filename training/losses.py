"""Losses of a classifier: of logits, whose softmax are the probabilities, and labels."""

from collections.abc import Callable

import torch
from torch.nn import functional

from training.settings import Settings


def _bce(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy(logits.softmax(dim=1), targets)


def _mse(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.mse_loss(logits.softmax(dim=1), targets)


# By name, from logits and targets, both float32 [n, classes].
_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cross_entropy": functional.cross_entropy,
    "bce": _bce,
    "mse": _mse,
}


def loss(settings: Settings, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean loss of a batch, a scalar.

    The target of each instance is its one-hot label, smoothed: with smoothing s and k classes the
    label's class gets 1 - s + s / k, and each other s / k (Szegedy et al. 2016, section 7).

    Args:
        settings: its `loss` and `label_smoothing`.
        logits: float32 [n, classes].
        labels: int64 [n].
    """
    classes = logits.shape[1]
    targets = functional.one_hot(labels, classes).to(logits.dtype)
    targets = targets * (1 - settings.label_smoothing) + settings.label_smoothing / classes
    return _LOSSES[settings.loss](logits, targets)


def uniform_loss(logits: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of uniform targets, a scalar (Hendrycks et al. 2019).

    "Deep Anomaly Detection with Outlier Exposure": least where all classes are equally likely.

    Args:
        logits: float32 [n, classes].
    """
    return -functional.log_softmax(logits, dim=1).mean()
