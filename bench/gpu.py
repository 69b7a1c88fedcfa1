"""The forward on a GPU beside a bare replay of a CUDA graph of the same model.

    python -m bench.gpu

For each batch size, in interleaved rounds: the time of a bare replay, input and output already on
the device; that of `CudaGraphs`, with staging, both copies and padding; and of the whole of
`BatchHandler.handle` for as many requests with one PNG each. The last gives images a second for one
worker. Without a GPU it says so and measures nothing.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from prometheus_client import CollectorRegistry

from handler.card import CARD_FILE, TORCHSCRIPT_FILE
from handler.cuda import CudaGraphs
from handler.metrics import Metrics
from handler.mnist import MnistHandler
from tests.images import png
from tests.unit.conftest import Context, make_card, served_model
from training.export import to_torchscript

SIZES = (1, 8, 64, 512)
ROUNDS = 7


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Of one call, on average, until the device has done it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def bare_replay(module: torch.jit.ScriptModule, size: int) -> Callable[[], object]:
    """Nothing but the graph."""
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


def main() -> int:
    """Print the table."""
    if not torch.cuda.is_available():
        print("there is no CUDA device here: nothing measured")
        return 0
    torch.manual_seed(0)
    device = torch.device("cuda:0")
    content = to_torchscript(served_model("mnist"), torch.zeros(3, 28, 28))
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        directory = Path(scratch)
        (directory / TORCHSCRIPT_FILE).write_bytes(content)
        (directory / CARD_FILE).write_text(make_card("mnist", content).to_json())
        module = torch.jit.load(str(directory / TORCHSCRIPT_FILE), map_location=device).eval()
        graphs = CudaGraphs(module, device, (28, 28))
        context = Context(directory)
        context.system_properties["gpu_id"] = 0
        served = MnistHandler()
        with mock.patch("handler.batching.Metrics", partial(Metrics, registry=CollectorRegistry())):
            served.initialize(context)
        print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}; {ROUNDS} rounds")
        print("batch  bare replay us  CudaGraphs us  ratio  handle us  images/s")
        for size in SIZES:
            images = torch.randint(0, 256, (size, 28, 28), dtype=torch.uint8)
            requests = [{"body": png(image)} for image in images]
            contestants: tuple[Callable[[], object], ...] = (
                bare_replay(module, size),
                partial(graphs, images),
                partial(served.handle, requests, Context(directory, size)),
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
