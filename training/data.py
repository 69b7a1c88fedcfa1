"""What a data set is: three splits of instances and labels; and where files of data are kept."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from training.errors import TrainingError

MNIST_DIR = Path(os.environ.get("MNIST_DIR") or ".cache/mnist")


class DataError(TrainingError):
    """The data is not available; the message says what to put where."""


@dataclass(frozen=True)
class Split:
    """Instances and their labels.

    Attributes:
        x: [n, *input_shape], in the numbers that a request has.
        y: int64 [n].
    """

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device) -> "Split":
        """The same split on a device."""
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Data:
    """A data set in three splits.

    Attributes:
        train: what weights are fitted to.
        validation: what every decision is made on, the gate's among them.
        test: looked at once, when nothing can change any more.
    """

    train: Split
    validation: Split
    test: Split

    @property
    def sha256(self) -> str:
        """Digest of all instances and labels in order."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            for tensor in (split.x, split.y):
                digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()
