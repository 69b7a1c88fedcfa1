"""Whether confidence is the share of right answers, and the temperature that makes it so."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy import optimize
from torch.nn import functional

_LIMIT = 20.0  # a factor that no network of use needs


def expected_calibration_error(
    probabilities: torch.Tensor, labels: torch.Tensor, bins: int = 15
) -> float:
    """Mean distance of confidence from accuracy (Naeini et al. 2015; Guo et al. 2017, section 2).

    Instances are put into bins by their largest probability, as `by_confidence` does. The error is
    the sum over bins B of |B| / n * |accuracy(B) - confidence(B)|: the share of right answers in B
    and the mean of B's largest probabilities. 0 is best.

    Args:
        probabilities: [n, classes], of any floating dtype; computed with as float64.
        labels: int64 [n].
        bins: how many.

    Returns:
        0 to 1.

    Raises:
        ValueError: there are no instances.
    """
    if not len(labels):
        raise ValueError("the calibration error of no instances is not defined")
    confidence, right, bin_of = by_confidence(probabilities, labels, bins)
    excess = right - confidence
    # |B| / n times the difference of means is the difference of sums over n.
    sums = torch.zeros(bins, dtype=torch.float64, device=excess.device)
    return float(sums.index_add(0, bin_of, excess).abs().sum() / len(labels))


def by_confidence(
    probabilities: torch.Tensor, labels: torch.Tensor, bins: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put instances into bins of equal width by their largest probability.

    Args:
        probabilities: [n, classes], of any floating dtype.
        labels: int64 [n].
        bins: how many; number i, from 0, is for those over i / bins up to (i + 1) / bins.

    Returns:
        The largest probability of each instance, float64 [n]; 1 where it is of the label and 0
        elsewhere, float64 [n]; and the number of its bin, int64 [n].
    """
    confidence, answers = probabilities.double().max(dim=1)
    edges = torch.arange(1, bins, dtype=torch.float64, device=confidence.device) / bins
    return confidence, (answers == labels).double(), torch.bucketize(confidence, edges)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What makes a model's confidence honest, and what it does on the instances it was fitted to.

    Attributes:
        method: `temperature`, or `none` where the labels decide no temperature.
        temperature: what logits are divided by; 1.0 without a method.
        ece_before: expected calibration error of the softmax of the logits, in 15 bins.
        ece_after: that of the softmax of the logits over the temperature.
        note: why there is no method.
    """

    method: str
    temperature: float
    ece_before: float
    ece_after: float
    note: str = ""

    def rounded(self) -> dict[str, Any]:
        """As a dictionary, errors rounded to six decimal places."""
        values = {name: value for name, value in asdict(self).items() if value != ""}
        return values | {name: round(values[name], 6) for name in ("ece_before", "ece_after")}


def calibrate(logits: torch.Tensor, labels: torch.Tensor) -> Calibration:
    """The temperature of least mean negative log likelihood (Guo et al. 2017, section 4.2).

    It changes no label. Where every label has the largest logit, the likelihood grows for ever as
    the temperature falls, so that there is none to choose: such labels say nothing of confidence.

    Args:
        logits: float32 [n, classes], of instances that the weights were not fitted to.
        labels: int64 [n].
    """
    logits = logits.double()
    before = expected_calibration_error(logits.softmax(dim=1), labels)
    if bool((logits.argmax(dim=1) == labels).all()):
        return Calibration(
            method="none",
            temperature=1.0,
            ece_before=before,
            ece_after=before,
            note="every label has the highest probability, so no temperature is the likeliest",
        )

    def loss(log_temperature: float) -> float:
        return float(functional.cross_entropy(logits / math.exp(log_temperature), labels))

    # Convex in the inverse of the temperature, so of one minimum in its logarithm.
    limit = math.log(_LIMIT)
    found = optimize.minimize_scalar(loss, bounds=(-limit, limit), options={"xatol": 1e-6})
    temperature = round(math.exp(found.x), 4)  # so that the card has what the TorchScript has
    after = expected_calibration_error((logits / temperature).softmax(dim=1), labels)
    return Calibration(
        method="temperature", temperature=temperature, ece_before=before, ece_after=after
    )
