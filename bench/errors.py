"""The error that ends a benchmark."""


class BenchError(Exception):
    """The benchmark cannot go on; the message says why."""
