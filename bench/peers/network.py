"""What every peer shares: a picture's pixels, the network on one core, and the answer's JSON.

Peers run this in environments of their own, where nothing else of the repository can be imported.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
Network = Callable[[Pixels], Probabilities]
# As this service's mnist.
MAX_BATCH = 64
# Set by the benchmark.
DIRECTORY = Path(os.environ.get("PEER_MODEL", "."))
PORT, *OTHER_PORTS = map(int, os.environ.get("PEER_PORTS", "0").split())
WORKERS = int(os.environ.get("PEER_WORKERS", "1"))


def decode(body: bytes) -> Pixels:
    """Read a picture of 28x28.

    Returns:
        uint8 [28, 28].

    Raises:
        ValueError: it is not such a picture.
    """
    try:
        image = Image.open(io.BytesIO(body)).convert("L")
    except OSError as error:
        raise ValueError(str(error)) from None
    if image.size != (28, 28):
        raise ValueError(f"expected 28x28 pixels, got {image.size}")
    return np.asarray(image)


def load_onnx() -> Network:
    """Load the export into ONNX Runtime: uint8 [n, 28, 28] to probabilities [n, 10]."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Every worker computes on one core; more threads would compete with the other workers.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(DIRECTORY / "model.onnx", options)

    def network(pixels: Pixels) -> Probabilities:
        (probabilities,) = session.run(None, {"image": pixels})
        return probabilities  # type: ignore[no-any-return]

    return network


def load_torchscript() -> Network:
    """Load the archive's TorchScript: uint8 [n, 28, 28] to probabilities [n, 10]."""
    import torch

    torch.set_num_threads(1)
    # `optimize_for_inference` takes 6 % less for 32 images, and 2.4 times as long for one.
    module = torch.jit.load(str(DIRECTORY / "model.pt")).eval()

    def network(pixels: Pixels) -> Probabilities:
        with torch.inference_mode():
            return module(torch.from_numpy(pixels)).numpy()  # type: ignore[no-any-return]

    # oneDNN compiles a kernel for each shape that it meets, and the executor specialises.
    for size in (*range(1, MAX_BATCH + 1), 1, 1):
        network(np.zeros((size, 28, 28), np.uint8))
    return network


def answer(probabilities: Probabilities) -> dict[str, Any]:
    """The document that this service answers."""
    label = int(probabilities.argmax())
    prediction = {
        "label": label,
        "confidence": float(probabilities[label]),
        "probabilities": probabilities.tolist(),
    }
    return {"model": "mnist", "version": "1.0", "predictions": [prediction]}
