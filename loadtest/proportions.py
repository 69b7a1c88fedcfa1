"""Confidence intervals of proportions that hold for rare events, zero included."""

import math
from dataclasses import dataclass

from loadtest.recorder import Floats

_Z95 = 1.959964


@dataclass(frozen=True)
class Proportion:
    """Events out of trials, which may be fractions after division by a design effect.

    Attributes:
        events: 0 to `trials`.
        trials: over 0.
    """

    events: float
    trials: float

    @property
    def share(self) -> float:
        """Events ÷ trials."""
        return self.events / self.trials

    def interval(self) -> tuple[float, float]:
        """The 95 % score interval (Wilson 1927), which has a width even for 0 events."""
        weight = _Z95**2 / self.trials
        middle = (self.share + weight / 2) / (1 + weight)
        half = math.sqrt(self.share * (1 - self.share) * weight + weight**2 / 4) / (1 + weight)
        return max(0.0, middle - half), min(1.0, middle + half)


def ratio_interval(before: Proportion, after: Proportion) -> tuple[float, float]:
    """The 95 % interval of `after.share` ÷ `before.share`; infinite above if `before` may be 0.

    The two score intervals combined by MOVER-R (Donner and Zou 2012, Statistical Methods in
    Medical Research 21:347; for proportions Newcombe 2016, ibid. 25:1774): each limit r solves
    after - r before = ± sqrt((after - its limit)² + r² (before - its limit)²).
    """

    def reach(share: float, limit: float) -> float:
        return share**2 - (share - limit) ** 2

    (low_before, high_before), (low_after, high_after) = before.interval(), after.interval()
    product, low, high = before.share * after.share, 0.0, math.inf
    if (a := reach(after.share, low_after)) > 0:
        b = reach(before.share, high_before)
        low = a / (product + math.sqrt(product**2 - a * b))
    if (b := reach(before.share, low_before)) > 0:
        a = reach(after.share, high_after)
        high = (product + math.sqrt(product**2 - a * b)) / b
    return low, high


def design_effect(events: Floats, trials: Floats) -> float:
    """By how much blocks with a common cause widen a proportion's variance; at least 1.

    The variance of the share from the spread between blocks, over the binomial one (Kish 1965).
    Events and trials divided by it can be treated as independent (Rao and Scott 1992, Biometrics
    48:577).

    Args:
        events: by block, float64 [blocks].
        trials: likewise, each over 0.
    """
    blocks, share = len(trials), events.sum() / trials.sum()
    binomial = trials.sum() * share * (1 - share)
    if blocks < 2 or not binomial:
        return 1.0
    between = ((events - share * trials) ** 2).sum() * blocks / (blocks - 1)
    return max(1.0, float(between / binomial))
