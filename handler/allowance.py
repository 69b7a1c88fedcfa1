"""A bound on the time for which dear requests keep the other requests of a worker waiting."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from handler.errors import OverloadedError

# Dear requests take at most this share of a worker's time while there are others.
_SHARE = 0.5
# Seconds of dear work that a batch may take before it begins more: four photographs of 12
# megapixels. What it begins last takes 0.6 s at most, and the next batch begins none: so nobody
# waits much longer than that.
_BURST = 0.1
# Seconds for which a batch of several requests shows that there are others.
_MEMORY = 1.0


class Allowance:
    """Admits dear requests by a token bucket that may be overdrawn.

    A request that took s seconds is paid off after s / share. Another is admitted when at most
    the burst is left to pay, whatever it will cost: nobody knows that exactly beforehand. While
    every request comes alone, nobody is kept waiting, and all are admitted.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._paid_off = self._shared_at = -math.inf
        self._batch_size = 1

    def begin_batch(self, size: int) -> None:
        """Note that the previous batch has ended, and one of so many requests begins."""
        if self._batch_size > 1:
            self._shared_at = self._clock()
        self._batch_size = size

    def check(self) -> None:
        """Refuse dear work if it cannot be admitted now.

        Raises:
            OverloadedError: with the seconds until it can be.
        """
        now = self._clock()
        wait = self._paid_off - now - _BURST
        if wait > 0 and (self._batch_size > 1 or now - self._shared_at < _MEMORY):
            seconds = math.ceil(wait)
            raise OverloadedError(
                "the worker has spent its share of time on explanations and images that take long; "
                f"retry after {seconds} s",
                retry_after=seconds,
            )

    @contextmanager
    def spend(self) -> Iterator[None]:
        """Do dear work, after a check."""
        self.check()
        start = self._clock()
        to_pay = min(max(self._paid_off - start, 0.0), _BURST)
        try:
            yield
        finally:
            self._paid_off = start + to_pay + (self._clock() - start) / _SHARE
