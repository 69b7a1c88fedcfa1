"""LitServe with batches."""

from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Body, HTTPException

from bench.peers.network import (
    MAX_BATCH,
    PORT,
    WORKERS,
    Pixels,
    Probabilities,
    answer,
    decode,
    load_onnx,
)


class Mnist(litserve.LitAPI):
    """Takes a picture as raw bytes."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the network."""
        self.network = load_onnx()

    def decode_request(
        self, request: Annotated[bytes, Body(media_type="application/octet-stream")]
    ) -> Pixels:
        """Read one picture."""
        try:
            return decode(request)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None

    def batch(self, inputs: list[Pixels]) -> Pixels:
        """Stack the pictures of a batch."""
        return np.stack(inputs)

    def predict(self, x: Pixels) -> Probabilities:
        """Run the network on a batch."""
        return self.network(x)

    def unbatch(self, output: Probabilities) -> list[Probabilities]:
        """Take a batch apart."""
        return list(output)

    def encode_response(self, output: Probabilities) -> dict[str, Any]:
        """Answer one picture."""
        return answer(output)


if __name__ == "__main__":
    api = Mnist(max_batch_size=MAX_BATCH, batch_timeout=0.001, api_path="/predictions/mnist")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS)
    server.run(port=PORT, num_api_servers=WORKERS, generate_client_file=False, log_level="warning")
