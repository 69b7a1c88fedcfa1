"""BentoML with adaptive batches, of pictures in base64: an API that takes raw bytes has no batches.

bentoml serve bench.peers.bentoml_service:Mnist
"""

import base64
from typing import Any

import bentoml
import numpy as np
from bentoml.exceptions import InvalidArgument

from bench.peers.network import MAX_BATCH, WORKERS, answer, decode, load_onnx


@bentoml.service(
    workers=WORKERS,
    traffic={"timeout": 30, "max_concurrency": 1024},
    logging={"access": {"enabled": False}},
)
class Mnist:
    """Answers each picture of a list, of which a request has one."""

    def __init__(self) -> None:
        self.network = load_onnx()

    @bentoml.api(
        batchable=True,
        max_batch_size=MAX_BATCH,
        max_latency_ms=1000,  # of 20 and 100, most requests of 128 connections are refused
        route="/predictions/mnist",
    )
    def predict(self, images: list[str]) -> list[dict[str, Any]]:
        """Answer a batch."""
        try:
            pixels = [decode(base64.b64decode(image)) for image in images]
        except ValueError as error:
            raise InvalidArgument(str(error)) from None
        return [answer(row) for row in self.network(np.stack(pixels))]
