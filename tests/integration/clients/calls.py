"""Runs calls of a client and prints their results; for the environment that has the clients."""

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# Two digits of one stroke each.
IMAGES = np.zeros((2, 28, 28), np.uint8)
IMAGES[0, 4:24, 13:16] = 255
IMAGES[1, 4:24, 12:15] = 255
PAIRS = np.array([[0, 1], [1, 1]], np.float32)


def report(calls: Mapping[str, Callable[[], Any]]) -> None:
    """Print each call's result, or what it raised, as JSON."""
    print(json.dumps(asyncio.run(_results(calls)), default=_plain))


async def _results(calls: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, call in calls.items():
        try:
            result = call()
            results[name] = await result if inspect.isawaitable(result) else result
        except Exception as error:  # noqa: BLE001 (whatever the client makes of it)
            results[name] = {"error": f"{type(error).__name__}: {error}"}
    return results


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else str(value)
