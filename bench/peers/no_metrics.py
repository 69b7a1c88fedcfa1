"""Replaces `handler/metrics.py` in a copy of an archive, to measure what metrics cost."""

from collections.abc import Callable
from typing import Any


class Metrics:
    """Accepts the calls of the real one, and counts nothing."""

    def __init__(self, *_: Any) -> None: ...

    def __getattr__(self, _: str) -> Callable[..., None]:
        return _do_nothing


def _do_nothing(*_: Any) -> None: ...
