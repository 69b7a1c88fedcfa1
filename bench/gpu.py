"""The forward on a GPU beside a bare replay of a CUDA graph of the same model.

    python -m bench.gpu [--model-store DIR]

For each batch size, in interleaved rounds: the time of a bare replay, with input and output already
on the device; of `CudaGraphs`, with staging, both copies and padding; and of all of
`BatchHandler.handle`, for as many requests with one PNG each. The last gives images a second for
one worker. Without a GPU it says so and measures nothing.
"""

import argparse
import io
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from ts.context import Context, RequestProcessor

from handler.card import TORCHSCRIPT_FILE
from handler.cuda import CudaGraphs
from handler.mnist import MnistHandler

SIZES = (1, 8, 64, 512)
ROUNDS = 7


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Mean time of one call, until the device has finished it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def bare_replay(module: torch.jit.ScriptModule, size: int) -> Callable[[], object]:
    """The graph alone, for one batch size."""
    instances = torch.zeros((size, 28, 28), dtype=torch.uint8, device="cuda:0")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            module(instances)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        module(instances)
    return graph.replay


def context(directory: Path, size: int) -> Context:
    """TorchServe's context of a batch on the first GPU."""
    made = Context("mnist", str(directory), {}, size, 0, "0.12.0")
    made.request_processor = [RequestProcessor({}) for _ in range(size)]
    return made


def png(pixels: torch.Tensor) -> bytes:
    """A grayscale image of uint8 [height, width]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def measure(directory: Path) -> None:
    """Print the table for an unpacked archive of mnist."""
    device = torch.device("cuda:0")
    module = torch.jit.load(str(directory / TORCHSCRIPT_FILE), map_location=device).eval()
    graphs = CudaGraphs(module, device, (28, 28))
    served = MnistHandler()
    served.initialize(context(directory, 0))
    print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}; {ROUNDS} rounds")
    print("batch  bare replay us  CudaGraphs us  ratio  handle us  images/s")
    for size in SIZES:
        images = torch.randint(0, 256, (size, 28, 28), dtype=torch.uint8)
        requests = [{"body": png(image)} for image in images]
        contestants: tuple[Callable[[], object], ...] = (
            bare_replay(module, size),
            partial(graphs, images),
            partial(served.handle, requests, context(directory, size)),
        )
        times: list[list[float]] = [[], [], []]
        for _ in range(ROUNDS):
            for call, measured in zip(contestants, times, strict=True):
                measured.append(seconds(call, max(4, 400 // size)))
        bare, copied, whole = (statistics.median(measured) * 1e6 for measured in times)
        spread = " ".join(f"{min(m) * 1e6:.0f}-{max(m) * 1e6:.0f}" for m in times)
        print(
            f"{size:5}  {bare:14.1f}  {copied:13.1f}  {copied / bare:5.2f}  {whole:9.0f}"
            f"  {size / whole * 1e6:8,.0f}   ({spread})"
        )


def main() -> int:
    """Run the benchmark; 0, or 1 if there is no archive."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    parser.add_argument("--model-store", type=Path, default=Path("model_store"), metavar="DIR")
    archive = parser.parse_args().model_store / "mnist.mar"
    if not torch.cuda.is_available():
        print("there is no CUDA device here: nothing measured")
        return 0
    if not archive.is_file():
        print(f"error: {archive} is missing: run `make train`", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        with zipfile.ZipFile(archive) as mar:
            mar.extractall(scratch)
        measure(Path(scratch))
    return 0


if __name__ == "__main__":
    sys.exit(main())
