"""XOR: pairs of numbers; the model has learned those near 0 and 1."""

from handler.batching import BatchHandler


class XorHandler(BatchHandler):
    """Takes instances of two numbers, and answers as the core does."""

    # As far from 0 as from 1: in place of a number, it says neither.
    baseline = 0.5
