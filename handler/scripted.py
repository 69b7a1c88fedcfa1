"""A TorchScript model on its device: instances in, probabilities out."""

import hashlib
import os
from pathlib import Path

import torch

from handler.card import TORCHSCRIPT_FILE, ModelCard

# One forward never holds more than this, so that a batch of full requests (64 of 1,024 instances)
# does not need gigabytes for its activations.
MAX_FORWARD = 256


class ScriptedModel:
    """Runs the TorchScript of an unpacked archive.

    Args:
        directory: where the archive was unpacked.
        card: its model card.
        gpu_id: the CUDA device that TorchServe assigned, or None.

    Raises:
        ValueError: the TorchScript file is not the one that the card names.
    """

    def __init__(self, directory: Path, card: ModelCard, gpu_id: int | None) -> None:
        use_gpu = gpu_id is not None and torch.cuda.is_available()
        self.device = torch.device(f"cuda:{gpu_id}" if use_gpu else "cpu")
        if not use_gpu:
            # One core a worker: with torch's default each worker would start a thread a core, and
            # they would fight for them.
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        file = directory / TORCHSCRIPT_FILE
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if digest != card.torchscript_sha256:
            raise ValueError(
                f"{TORCHSCRIPT_FILE} of model {card.name} {card.version} has SHA-256 {digest}, but "
                f"{card.torchscript_sha256} was archived: the archive was altered or damaged"
            )
        self._module = torch.jit.load(str(file), map_location=self.device).eval()
        self._shape = card.input_shape
        self.warm_up()

    def warm_up(self) -> None:
        """Run every code path of the first request once, at the smallest and the largest batch.

        The profiling executor specialises in its first runs, hence more than one of each.
        """
        for size in (1, MAX_FORWARD):
            for dtype in (torch.uint8, torch.float32):
                for _ in range(2):
                    self(torch.zeros((size, *self._shape), dtype=dtype))

    @torch.inference_mode()
    def __call__(self, instances: torch.Tensor) -> torch.Tensor:
        """Probabilities of each class.

        Args:
            instances: uint8 or float32 [n, *input_shape], on the CPU.

        Returns:
            float64 [n, classes], on the CPU; each row sums to 1.
        """
        parts = [self._module(part.to(self.device)) for part in instances.split(MAX_FORWARD)]
        return torch.cat(parts).double().cpu()
