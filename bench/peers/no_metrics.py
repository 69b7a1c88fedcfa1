"""Stands in for `handler/metrics.py` in a copy of an archive, to measure what metrics cost."""

from typing import Any


class Metrics:
    """Takes what the real one takes, and does nothing with it."""

    def __init__(self, *_: Any) -> None: ...

    def batch(self, *_: Any) -> None:
        """A batch was answered."""

    def stages(self, *_: Any) -> None:
        """How long it took."""

    def predictions(self, *_: Any) -> None:
        """Instances were answered."""
