"""Figures about a model's answers that its report shows."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn

from training.calibration import by_confidence
from training.corruptions import KINDS, SEVERITIES, corrupt
from training.data import Split
from training.evaluation import accuracy


@dataclass(frozen=True)
class Bin:
    """Instances whose confidence, the largest probability, lies between two limits.

    Attributes:
        lower: confidence is over it.
        upper: confidence is at most this.
        instances: how many there are.
        confidence: their mean.
        accuracy: share of right answers.
    """

    lower: float
    upper: float
    instances: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Mistake:
    """An instance that the model gave another label than its own.

    Attributes:
        index: in its split.
        label: the right one.
        answer: the model's.
        confidence: probability of the answer.
        of_label: probability of the label.
    """

    index: int
    label: int
    answer: int
    confidence: float
    of_label: float


def confusion(labels: torch.Tensor, answers: torch.Tensor, classes: int) -> torch.Tensor:
    """Counts, int64 [classes, classes]: row i, column j is label i answered with j.

    Args:
        labels: int64 [n].
        answers: int64 [n].
        classes: how many there are.
    """
    pairs = labels * classes + answers
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def reliability(
    probabilities: torch.Tensor, labels: torch.Tensor, bins: int = 15
) -> tuple[Bin, ...]:
    """Accuracy by confidence, in bins of equal width without the empty ones.

    The bins are those of `training.calibration.expected_calibration_error`.

    Args:
        probabilities: [n, classes].
        labels: int64 [n].
        bins: how many, the empty ones included.
    """
    confidence, right, bin_of = by_confidence(probabilities, labels, bins)
    return tuple(
        Bin(
            lower=number / bins,
            upper=(number + 1) / bins,
            instances=int(inside.sum()),
            confidence=confidence[inside].mean().item(),
            accuracy=right[inside].mean().item(),
        )
        for number in range(bins)
        if (inside := bin_of == number).any()
    )


def worst_mistakes(
    probabilities: torch.Tensor, labels: torch.Tensor, count: int
) -> tuple[Mistake, ...]:
    """The mistakes that cost most: those with the least probability of the label, least first.

    Args:
        probabilities: [n, classes].
        labels: int64 [n].
        count: how many at most.
    """
    of_label = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    confidence, answers = probabilities.max(dim=1)
    wrong = (answers != labels).nonzero().squeeze(1)
    order = wrong[of_label[wrong].argsort(stable=True)]
    return tuple(
        Mistake(
            index=index,
            label=int(labels[index]),
            answer=int(answers[index]),
            confidence=confidence[index].item(),
            of_label=of_label[index].item(),
        )
        for index in order[:count].tolist()
    )


def accuracy_by_corruption(model: nn.Module, split: Split) -> dict[str, tuple[float, ...]]:
    """Accuracy on images that are corrupted in MNIST-C's ways.

    Args:
        model: outputs probabilities.
        split: uint8 [n, 28, 28].

    Returns:
        By kind, at each severity from 1; of a kind with one strength only, at that one.
    """
    images = split.x.numpy()

    def at(kind: str, severity: int | None) -> float:
        corrupted = torch.from_numpy(corrupt(images, kind, severity))
        return accuracy(model, Split(corrupted, split.y))

    # NumPy and SciPy let go of the interpreter: two threads take 0.7 of the time of one.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        futures = {
            kind: [pool.submit(at, kind, severity) for severity in _severities(kind)]
            for kind in KINDS
        }
        return {kind: tuple(each.result() for each in futures[kind]) for kind in KINDS}


def _severities(kind: str) -> Sequence[int | None]:
    return range(1, len(SEVERITIES[kind]) + 1) if kind in SEVERITIES else (None,)


def disagreements(first: torch.Tensor, second: torch.Tensor) -> Mapping[tuple[int, int], list[int]]:
    """Indices at which two models answer differently, by both answers, the commonest pair first.

    Args:
        first: answers of the first model, int64 [n].
        second: answers of the second, int64 [n].
    """
    found: dict[tuple[int, int], list[int]] = {}
    for index in (first != second).nonzero().squeeze(1).tolist():
        found.setdefault((int(first[index]), int(second[index])), []).append(index)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))
