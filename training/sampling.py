"""Which instances each batch has: some by how wrong the network was about them, the rest in turn.

After a few epochs nearly all instances of an easy data set teach a network nothing. Drawing a part
of each batch by the running loss of each instance spends the time on the others (Loshchilov and
Hutter 2015, "Online Batch Selection for Faster Training of Neural Networks").
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from training.distributed import ALONE, Group

# Of a running loss, what each new one replaces.
_NEWEST = 0.4
# An instance that is wrong for certain, maybe by its label, is drawn no more often than one in
# doubt.
_MOST = 1.0


class Sampler:
    """Draws the batches of each epoch.

    Args:
        count: of instances.
        hard_share: of each batch, drawn by running loss; the rest comes in turn, in random order.
        device: of the running losses.
        group: the processes that train together.
    """

    def __init__(
        self, count: int, hard_share: float, device: torch.device, group: Group = ALONE
    ) -> None:
        self._hard_share, self._group = hard_share, group
        # Equal at first: all are drawn alike until the network was right about them.
        self._losses = torch.full((count,), _MOST, device=device)

    def batches(self, steps: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
        """Indices of each batch of an epoch, int64 [size]; those drawn by loss come first.

        All processes get the same.
        """
        device = self._losses.device
        hard = round(size * self._hard_share)
        in_turn = torch.randperm(len(self._losses), generator=generator)[: steps * (size - hard)]
        rows = [in_turn.to(device).view(steps, size - hard)]
        if hard:
            drawn = torch.multinomial(
                self._losses.cpu(), steps * hard, replacement=True, generator=generator
            )
            rows.insert(0, drawn.to(device).view(steps, hard))
        before = self._losses.clone()
        yield from torch.cat(rows, dim=1)
        if hard:
            # Each process has noted its own part.
            changes = self._group.total(self._losses - before)
            self._losses = (before + changes).clamp(0, _MOST)

    def update(self, indices: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Note how wrong the network was.

        Args:
            indices: int64 [n].
            logits: [n, classes].
            labels: int64 [n].
        """
        if self._hard_share:
            losses = functional.cross_entropy(logits, labels, reduction="none").clamp(max=_MOST)
            self._losses[indices] = torch.lerp(self._losses[indices], losses, _NEWEST)

    def state_dict(self) -> dict[str, Any]:
        """The running losses."""
        return {"losses": self._losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the running losses of `state_dict`."""
        self._losses.copy_(state["losses"])
