"""Triton through PyTriton, with dynamic batches: a picture as binary BYTES of the Open Inference Protocol."""

import numpy as np
from pytriton.decorators import batch
from pytriton.exceptions import PyTritonInvalidOperationError
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from bench.peers.network import MAX_BATCH, PORT, WORKERS, Network, decode, load_onnx


def function(network: Network):
    """What one instance of the model calls."""

    @batch
    def predict(image):
        pixels = np.stack([decode(body) for (body,) in image])
        probabilities = network(pixels)
        return {"label": probabilities.argmax(1)[:, None], "probabilities": probabilities}

    return predict


if __name__ == "__main__":
    config = TritonConfig(http_port=PORT, grpc_port=PORT + 1, metrics_port=PORT + 2)
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
