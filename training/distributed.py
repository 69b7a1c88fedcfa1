"""Data-parallel training: several processes, each with its part of every batch.

`torchrun --nproc-per-node 2 -m training train mnist` starts the processes. Each has all data and
the same weights, and every step averages their gradients. They talk through gloo, or NCCL on GPUs.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from training.errors import TrainingError

Value = TypeVar("Value")


class DistributedError(TrainingError):
    """The processes cannot train together; the message says why."""


@dataclass(frozen=True)
class Group:
    """The processes that train together.

    Attributes:
        rank: of this process, from 0. The first one alone prints, evaluates and writes.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints, evaluates and writes."""
        return self.rank == 0

    def part(self, batch: torch.Tensor) -> torch.Tensor:
        """This process's part of the indices of a batch, int64 [n] to int64 [n / size].

        Raises:
            DistributedError: the batch has no equal parts, so that the mean of the processes'
                gradients would not be that of the batch.
        """
        if len(batch) % self.size:
            raise DistributedError(
                f"a batch of {len(batch)} instances has no {self.size} equal parts, one a process"
            )
        return batch[self.rank :: self.size]

    def parallel(self, network: nn.Module) -> nn.Module:
        """A network with the same weights whose gradients are the mean over the processes.

        Batch normalisation uses the statistics of a process's part of the batch; its running ones
        are the first process's.
        """
        return network if self.size == 1 else DistributedDataParallel(network)

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of the processes' values, in every process."""
        if self.size > 1:
            distributed.all_reduce(value)
        return value

    def broadcast(self, value: Value) -> Value:
        """The first process's value, in every process."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]


ALONE = Group()


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """The group of processes that torchrun started this one in; without torchrun, it alone.

    What processes other than the first print to standard output is dropped.

    Args:
        device: of type `cuda`, then each process takes the GPU of its number on its machine.

    Raises:
        DistributedError: another process ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    group = Group(distributed.get_rank(), distributed.get_world_size())
    try:
        with (
            Path(os.devnull).open("w") as nowhere,
            redirect_stdout(sys.stdout if group.is_first else nowhere),
        ):
            yield group
    except RuntimeError as error:
        # gloo has no class of error of its own.
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise DistributedError(
            f"process {group.rank} of {group.size} lost another, whose error says why"
        ) from error
    finally:
        distributed.destroy_process_group()
