"""Arrival processes of an open loop: requests are sent on a schedule that no answer changes."""

import random
from collections.abc import Iterator


def schedule(kind: str, rate: float, start: float, rng: random.Random) -> Iterator[float]:
    """Generate the intended send times of one source, without end.

    Args:
        kind: `poisson`, with independent exponential gaps, as in MLPerf Inference's server
            scenario; or `constant`, with equal gaps after a random phase.
        rate: requests a second, over 0.
        start: seconds, on any clock; the first time is after it.
        rng: used by this source alone; independent sources add up to one of their total rate.

    Raises:
        ValueError: the kind is another.
    """
    if kind not in KINDS:
        raise ValueError(f"arrivals: expected one of {', '.join(KINDS)}, got {kind!r}")
    is_poisson = kind == "poisson"
    now = start + (rng.expovariate(rate) if is_poisson else rng.random() / rate)
    while True:
        yield now
        now += rng.expovariate(rate) if is_poisson else 1 / rate


KINDS = ("poisson", "constant")
