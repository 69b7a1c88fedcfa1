"""A handler that does nothing: it measures the cost of TorchServe itself."""

from typing import Any


def handle(requests: list[Any] | None, _: Any) -> list[bytes] | None:
    """An empty JSON object for each request."""
    return [b"{}"] * len(requests) if requests else None
