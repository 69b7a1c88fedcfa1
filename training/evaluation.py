"""Metrics of a model on a split."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from training.data import Split

_BATCH = 500


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one split.

    Attributes:
        instances: number of instances.
        accuracy: share of instances whose most probable class is the label.
        log_loss: mean negative logarithm (base e) of the label's probability.
        min_confidence: smallest probability that any label was given.
        label_shares: share of the instances that each class was predicted for.
    """

    instances: int
    accuracy: float
    log_loss: float
    min_confidence: float
    label_shares: tuple[float, ...]

    def rounded(self) -> dict[str, Any]:
        """As a dictionary, rounded to six decimal places."""
        return {
            name: [round(share, 6) for share in value]
            if isinstance(value, tuple)
            else round(value, 6)
            for name, value in asdict(self).items()
        }


@torch.inference_mode()
def predict(model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """A model's output, float32 [n, classes] on the CPU, for instances [n, ...], batch by batch."""
    return torch.cat([model(part).cpu() for part in x.split(_BATCH)])


def accuracy(model: nn.Module, split: Split) -> float:
    """Share of a split's instances that a model in evaluation mode labels correctly."""
    return (predict(model, split.x).argmax(dim=1) == split.y.cpu()).double().mean().item()


def evaluate(model: nn.Module, split: Split) -> Evaluation:
    """Evaluate a model that outputs probabilities and is in evaluation mode."""
    return measure(predict(model, split.x), split.y.cpu())


def measure(probabilities: torch.Tensor, labels: torch.Tensor) -> Evaluation:
    """Metrics of what a model answered.

    Args:
        probabilities: float32 [n, classes], on the CPU.
        labels: int64 [n], on the CPU.
    """
    answers = probabilities.argmax(dim=1)
    of_label = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    counts = torch.bincount(answers, minlength=probabilities.shape[1])
    return Evaluation(
        instances=len(labels),
        accuracy=(answers == labels).double().mean().item(),
        log_loss=functional.nll_loss(probabilities.clamp_min(1e-12).log(), labels).item(),
        min_confidence=of_label.min().item(),
        label_shares=tuple((counts / len(labels)).tolist()),
    )
