"""Forwards on a GPU as replays of CUDA graphs, between pinned buffers.

A small network is a dozen kernels of a few microseconds, and launching each takes as long as it
runs. A CUDA graph launches all of them at once, but for one batch size only: so there is a ladder
of sizes, and a batch is padded to the next. https://docs.pytorch.org/docs/stable/notes/cuda.html
"""

from dataclasses import dataclass
from typing import Any

import torch

_LADDER = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# cuDNN chooses its algorithms, and the profiling executor specialises, in the first runs.
_WARM_UP_RUNS = 3


@dataclass(frozen=True)
class _Rung:
    """A captured forward: its input, its output, and the graph between them."""

    instances: torch.Tensor
    probabilities: torch.Tensor
    graph: torch.cuda.CUDAGraph


class CudaGraphs:
    """Runs a TorchScript module on one GPU.

    Numbers are float32 throughout: TensorFloat-32 and bfloat16 round differently in every
    algorithm, and an instance must have the same answer (to 1e-6) in every batch.

    Args:
        module: frozen, on the device.
        device: a CUDA device.
        shape: of one instance.

    Raises:
        torch.OutOfMemoryError: the device has no room for the smallest batch.
    """

    max_batch = _LADDER[-1]

    def __init__(
        self, module: torch.jit.ScriptModule, device: torch.device, shape: tuple[int, ...]
    ) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self._module = module
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._rungs: dict[torch.dtype, list[_Rung]] = {}
        with torch.cuda.device(device), torch.inference_mode():
            pool = torch.cuda.graph_pool_handle()
            for dtype in (torch.uint8, torch.float32):
                # The largest first: the smaller ones then fit into the memory that it took.
                rungs = [self._capture(size, dtype, shape, pool) for size in reversed(_LADDER)]
                self._rungs[dtype] = rungs[::-1]
            staged = (self.max_batch, *shape)
            self._staging = {
                dtype: torch.empty(staged, dtype=dtype, pin_memory=True) for dtype in self._rungs
            }
            classes = self._rungs[torch.uint8][0].probabilities.shape[1]
            self._answers = torch.empty((self.max_batch, classes), pin_memory=True)

    def _capture(self, size: int, dtype: torch.dtype, shape: tuple[int, ...], pool: Any) -> _Rung:
        instances = torch.zeros((size, *shape), dtype=dtype, device=self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP_RUNS):
                self._module(instances)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=self._stream):
            probabilities = self._module(instances)
        return _Rung(instances, probabilities, graph)

    def __call__(self, instances: torch.Tensor) -> torch.Tensor:
        """Run a batch.

        Args:
            instances: [n, *shape] on the CPU, n up to `max_batch`, uint8 or float32.

        Returns:
            Probabilities, float32 [n, classes] on the CPU; the next call overwrites them.
        """
        count = len(instances)
        rung = next(r for r in self._rungs[instances.dtype] if len(r.instances) >= count)
        staged, answers = self._staging[instances.dtype][:count], self._answers[:count]
        staged.copy_(instances)
        with torch.cuda.stream(self._stream):
            # Rows beyond the count keep what an earlier batch left; their output is not read.
            rung.instances[:count].copy_(staged, non_blocking=True)
            rung.graph.replay()
            answers.copy_(rung.probabilities[:count], non_blocking=True)
        self._stream.synchronize()
        return answers
