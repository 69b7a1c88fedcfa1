"""Whether confidence is the share of right answers, and the temperature that makes it so."""

import torch


def expected_calibration_error(
    probabilities: torch.Tensor, labels: torch.Tensor, bins: int = 15
) -> float:
    """Mean distance of confidence from accuracy (Naeini et al. 2015; Guo et al. 2017, section 2).

    Instances are put into bins of equal width, bin m for a largest probability over (m - 1) / bins
    up to m / bins. The error is the sum over bins B of |B| / n * |accuracy(B) - confidence(B)|, with
    the share of right answers in B and the mean of B's largest probabilities; 0 is best.

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
    confidence, answers = probabilities.double().max(dim=1)
    edges = torch.arange(1, bins, dtype=torch.float64, device=confidence.device) / bins
    bin_of = torch.bucketize(confidence, edges)
    excess = (answers == labels).double() - confidence
    # |B| / n times the difference of means is the difference of sums over n.
    sums = torch.zeros(bins, dtype=torch.float64, device=excess.device)
    return float(sums.index_add(0, bin_of, excess).abs().sum() / len(labels))
