"""Triton through PyTriton, with batches: the Open Inference Protocol, a picture as BYTES."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from bench.peers.network import MAX_BATCH, OTHER_PORTS, PORT, WORKERS, Network, decode, load_onnx


def function(network: Network) -> Callable[..., dict[str, NDArray[Any]]]:
    """Make what one instance of the model calls."""

    @batch
    def predict(image: NDArray[np.bytes_]) -> dict[str, NDArray[Any]]:
        """Answer a batch."""
        pixels = np.stack([decode(body) for (body,) in image])
        probabilities = network(pixels)
        return {"label": probabilities.argmax(1)[:, None], "probabilities": probabilities}

    return predict  # type: ignore[no-any-return]


if __name__ == "__main__":
    config = TritonConfig(http_port=PORT, grpc_port=OTHER_PORTS[0], metrics_port=OTHER_PORTS[1])
    with Triton(config=config) as triton:
        triton.bind(
            model_name="mnist",
            infer_func=[function(load_onnx()) for _ in range(WORKERS)],
            inputs=[Tensor(name="image", dtype=np.bytes_, shape=(1,))],
            outputs=[
                Tensor(name="label", dtype=np.int64, shape=(1,)),
                Tensor(name="probabilities", dtype=np.float32, shape=(10,)),
            ],
            config=ModelConfig(
                max_batch_size=MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=0)
            ),
        )
        triton.serve()
