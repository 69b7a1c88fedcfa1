"""Write `model.pt` and `model.onnx`, the network of an archive, and check that both answer alike.

    python -m bench.peers.export ARCHIVE DIRECTORY

runs where torch, onnx and onnxruntime are: this service's Python, with the environment of the peer
`web` on PYTHONPATH.
"""

import io
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper

from bench.peers.network import Pixels, Probabilities
from handler.card import TORCHSCRIPT_FILE
from training.data import MNIST_DIR
from training.mnist_data import mnist

_TOLERANCE = 1e-5
# The export is made of this many images: where a TorchScript chooses by the number of them, this
# is what it computes for many.
_EXAMPLE = 64


def export(archive: Path, directory: Path, pixels: Pixels) -> float:
    """Write both files.

    Args:
        archive: of mnist.
        directory: for the files; made if it is not there.
        pixels: to check with, uint8 [n, 28, 28].

    Returns:
        The largest difference of a probability.

    Raises:
        ValueError: a label differs, or a probability by more than 1e-5.
    """
    with zipfile.ZipFile(archive) as mar:
        content = mar.read(TORCHSCRIPT_FILE)
    module = torch.jit.load(io.BytesIO(content)).eval()
    model = _to_onnx(module).SerializeToString()
    session = onnxruntime.InferenceSession(model)
    expected, answered = [], []
    with torch.inference_mode():
        # Batches of every size up to the example's, and larger ones.
        bounds = np.cumsum([*range(1, _EXAMPLE + 1), *[500] * (len(pixels) // 500)])
        for part in np.split(pixels, bounds[bounds < len(pixels)]):
            expected.append(module(torch.from_numpy(part)).numpy())
            answered.append(session.run(None, {"image": part})[0])
    difference = _compare(np.concatenate(expected), np.concatenate(answered))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.pt").write_bytes(content)
    # Last, as its presence says that both are there and were checked.
    (directory / "model.onnx").write_bytes(model)
    return difference


def _compare(expected: Probabilities, answered: Probabilities) -> float:
    labels = int((expected.argmax(1) != answered.argmax(1)).sum())
    difference = float(np.abs(expected - answered).max())
    if labels or not difference <= _TOLERANCE:
        raise ValueError(
            f"the ONNX export differs: {labels} labels, probabilities by up to {difference:.2g}"
        )
    return difference


def _to_onnx(module: torch.jit.ScriptModule) -> onnx.ModelProto:
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        # torch's new exporter does not take a TorchScript.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(_EXAMPLE, 28, 28, dtype=torch.uint8),),
            file,
            dynamo=False,
            input_names=["image"],
            output_names=["probabilities"],
        )
        model = onnx.load(file)
    graph = model.graph
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    shapes = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] in shapes:
            shape = numpy_helper.to_array(node.attribute[0].t).copy()
            if shape[0] == _EXAMPLE:
                shape[0] = -1
                node.attribute[0].t.CopyFrom(numpy_helper.from_array(shape))
    return model


def main(archive: str, directory: str) -> None:
    """Export, and check with MNIST's test set."""
    test = mnist(MNIST_DIR).test.x.numpy()
    difference = export(Path(archive), Path(directory), test)
    print(f"{len(test):,} images: labels equal, probabilities differ by up to {difference:.1g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
