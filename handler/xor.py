"""XOR: pairs of numbers, of which those near 0 and 1 are the ones that were learned."""

from handler.batching import BatchHandler


class XorHandler(BatchHandler):
    """Takes instances of two numbers, as the core does with any numbers."""
