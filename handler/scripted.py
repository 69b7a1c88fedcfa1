"""Run a TorchScript model on its device: instances in, probabilities out."""

import hashlib
import math
import os
from pathlib import Path

import torch

from handler.card import TORCHSCRIPT_FILE, ModelCard
from handler.cuda import CudaGraphs
from handler.payload import Numbers

_DTYPES = {"B": torch.uint8, "f": torch.float32}
# Below this many, the weights that `optimize_for_inference` prepacks cost a CPU more than they
# save: 425 us for the convolutions of one MNIST image against 179; for 4 of them 121 us an image
# against 127, for 16 of them 46 against 59 (one core of a Xeon, AVX-512).
_PREPACKED_FROM = 4


class ScriptedModel:
    """Runs the TorchScript of an unpacked archive.

    Args:
        directory: where the archive was unpacked.
        card: its model card.
        gpu_id: the CUDA device that TorchServe assigned, or None.

    Attributes:
        device: that it runs on.
        numbers_per_instance: product of the input shape.

    Raises:
        ValueError: the TorchScript file is not the one that the card names.
    """

    def __init__(self, directory: Path, card: ModelCard, gpu_id: int | None) -> None:
        use_gpu = gpu_id is not None and torch.cuda.is_available()
        self.device = torch.device(f"cuda:{gpu_id}" if use_gpu else "cpu")
        self.numbers_per_instance = math.prod(card.input_shape)
        self._shape = card.input_shape
        file = directory / TORCHSCRIPT_FILE
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if digest != card.torchscript_sha256:
            raise ValueError(
                f"{TORCHSCRIPT_FILE} of model {card.name} {card.version} has SHA-256 {digest}, but "
                f"{card.torchscript_sha256} was archived: the archive was altered or damaged"
            )
        module = torch.jit.load(str(file), map_location=self.device).eval()
        self._forward: CudaGraphs | CpuForward = (
            CudaGraphs(module, self.device, self._shape)
            if use_gpu
            else CpuForward(module, self._shape)
        )

    def __call__(self, numbers: Numbers) -> torch.Tensor:
        """Run a batch.

        Args:
            numbers: of n instances, one after the other.

        Returns:
            Probabilities, float64 [n, classes] on the CPU; each row sums to 1.
        """
        return self.run(self.tensor(numbers))

    def tensor(self, numbers: Numbers) -> torch.Tensor:
        """The same numbers as a tensor [n, *shape], uint8 or float32."""
        flat = torch.frombuffer(numbers, dtype=_DTYPES[numbers.typecode])
        return flat.view(-1, *self._shape)

    @torch.inference_mode()
    def run(self, instances: torch.Tensor) -> torch.Tensor:
        """As `__call__`, of a tensor [n, *shape] on the CPU."""
        if len(instances) <= self._forward.max_batch:
            return self._forward(instances).double()
        parts = instances.split(self._forward.max_batch)
        return torch.cat([self._forward(part).double() for part in parts])


class CpuForward:
    """Runs a TorchScript module on the CPU.

    Args:
        module: frozen.
        shape: of one instance.
    """

    # A batch of full requests (64 of 1,024 instances) would need gigabytes for its activations.
    max_batch = 256
    # Every size up to this is warmed: oneDNN compiles a kernel for each shape that it meets.
    _MAX_WARM = 64

    def __init__(self, module: torch.jit.ScriptModule, shape: tuple[int, ...]) -> None:
        # One core a worker: by torch's default each worker would start a thread for every core, and
        # they would compete.
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self._module = module
        self._prepacked = torch.jit.optimize_for_inference(module)
        with torch.inference_mode():
            for size in (*range(1, self._MAX_WARM + 1), self.max_batch):
                self(torch.zeros((size, *shape), dtype=torch.uint8))
            for size in (1, _PREPACKED_FROM):
                # The profiling executor specialises in its first two runs.
                for _ in range(2):
                    self(torch.zeros((size, *shape), dtype=torch.float32))

    def __call__(self, instances: torch.Tensor) -> torch.Tensor:
        """Probabilities, float32 [n, classes], of instances [n, *shape], n up to `max_batch`."""
        module = self._prepacked if len(instances) >= _PREPACKED_FROM else self._module
        probabilities: torch.Tensor = module(instances)
        return probabilities
