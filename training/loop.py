"""The training loop: seeded, resumable after every epoch, with a progress bar."""

import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from training.data import Split
from training.distributed import ALONE, Group
from training.export import ServedModel
from training.losses import loss, uniform_loss
from training.recipe import Augmentation
from training.sampling import Sampler
from training.settings import Settings

# Each takes `lr` and `weight_decay`.
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
}


def _optimizer(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    of_sgd = (
        {"momentum": settings.momentum, "nesterov": settings.nesterov}
        if settings.optimizer == "sgd"
        else {}
    )
    return _OPTIMIZERS[settings.optimizer](
        network.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        **of_sgd,
    )


def _schedule(
    optimizer: torch.optim.Optimizer, settings: Settings, steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    if settings.schedule == "one_cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.learning_rate, total_steps=steps, pct_start=0.2
        )
    if settings.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return None


def seed_everything(seed: int) -> None:
    """Make what follows reproducible bit for bit on the same machine with as many threads.

    Torch raises where an operation has no deterministic implementation.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by CUDA
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    # By default that fills all new memory, too: 9 % of a step of `cnn`, for what nobody reads.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


class Fitting:
    """A training in progress.

    Randomness starts anew in every epoch, from the seed, the epoch and the process, so that the
    number of epochs done stands for the state of all generators.

    Args:
        model: on the device to train on.
        settings: of the training; the seed decides the order of instances, the augmentation and
            dropout.
        train: training split on the same device.
        augmentation: of each batch, or None.
        group: the processes that train together.

    Attributes:
        epoch: how many are done.
        steps: how many an epoch has; the incomplete batch at its end is dropped.
    """

    def __init__(
        self,
        model: ServedModel,
        settings: Settings,
        train: Split,
        *,
        augmentation: Augmentation | None,
        group: Group = ALONE,
    ) -> None:
        self.model, self.settings, self.group = model, settings, group
        self.epoch = 0
        self._size = min(settings.batch_size or len(train), len(train))
        self.steps = len(train) // self._size
        self._train, self._augmentation = train, augmentation
        self._sampler = Sampler(len(train), settings.hard_share, train.x.device, group)
        self._part = torch.empty(0, dtype=torch.int64)
        self._optimizer = _optimizer(model.network, settings)
        self._schedule = _schedule(self._optimizer, settings, settings.epochs * self.steps)
        self._averaged = _averaged(model.network, settings.average_decay)
        self._parallel = ServedModel(model.normalise, group.parallel(model.network))

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        rate: float = self._optimizer.param_groups[0]["lr"]
        return rate

    @property
    def served(self) -> ServedModel:
        """The model as it would be served now, with the averaged weights if there are any."""
        if self._averaged is None:
            return self.model
        return ServedModel(self.model.normalise, self._averaged.module)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This process's part of each batch of the next epoch: augmented instances, and labels.

        There may be more instances than labels: the last ones are outliers.
        """
        device, rank = self._train.x.device, self.group.rank
        # torch.manual_seed seeds those of all kinds of devices, which is 40 % of an epoch of `xor`.
        _global_generator(device).manual_seed(self._stream(f"dropout {rank}"))
        order = torch.Generator().manual_seed(self._stream("order"))
        generator = torch.Generator(device).manual_seed(self._stream(f"augmentation {rank}"))
        for batch in self._sampler.batches(self.steps, self._size, order):
            self._part = self.group.part(batch)
            instances, labels = self._train.x[self._part], self._train.y[self._part]
            yield self._augmented(instances, labels, generator), labels

    def _augmented(
        self, instances: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        augmentation = self._augmentation
        if augmentation is None:
            return instances
        x = augmentation.change(instances, generator)
        if augmentation.outliers and self.settings.outlier_weight:
            x = torch.cat([x, augmentation.outliers(instances, labels, generator)])
        return x

    def step(self, x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Change the weights once; the logits of before, and their loss, both detached."""
        with _precision(self.settings, x.device):
            logits = self._parallel.logits(x)
        logits, of_outliers = logits.float().tensor_split([len(labels)])
        value = loss(self.settings, logits, labels)
        if len(of_outliers):
            value = value + self.settings.outlier_weight * uniform_loss(of_outliers)
        self._optimizer.zero_grad()
        value.backward()
        self._optimizer.step()
        if self._schedule:
            self._schedule.step()
        if self._averaged:
            self._averaged.update_parameters(self.model.network)
        logits = logits.detach()
        mild = round(len(labels) * (self._augmentation.mild_share if self._augmentation else 1))
        self._sampler.update(self._part[:mild], logits[:mild], labels[:mild])
        return logits, value.detach()

    def finish(self) -> None:
        """Leave the model in evaluation mode, with the averaged weights if there are any."""
        if self._averaged:
            self.model.network.load_state_dict(self._averaged.module.state_dict())
        self.model.eval()

    def state_dict(self) -> dict[str, Any]:
        """All that changes from epoch to epoch, as tensors and plain values."""
        parts = self._parts()
        return {"epoch": self.epoch} | {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the epoch that `state_dict` was called after, bit for bit."""
        self.epoch = state["epoch"]
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        parts = {
            "network": self.model.network,
            "optimizer": self._optimizer,
            "schedule": self._schedule,
            "averaged": self._averaged,
            "sampler": self._sampler,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _stream(self, purpose: str) -> int:
        """A seed for one purpose in the next epoch; the digest keeps neighbours apart."""
        text = f"{self.settings.seed} {self.epoch} {purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


class Watch:
    """What looks on while a network is fitted, and changes nothing of it; this one does nothing.

    Attributes:
        seed: of the attempt to continue, or None to begin with the first.
    """

    seed: int | None = None

    def begin(self, fitting: Fitting) -> dict[str, Any] | None:
        """Before the first epoch; returns the state to continue from, or None."""

    def step(
        self, fitting: Fitting, logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor
    ) -> None:
        """After each step, with what `Fitting.step` returned; its gradients are still there."""

    def end_epoch(self, fitting: Fitting) -> None:
        """After each epoch."""


def fit(fitting: Fitting, watch: Watch, *, description: str) -> None:
    """Fit the network of a model, and leave it in evaluation mode.

    Args:
        fitting: not begun; every process of its group calls this with its own.
        watch: looks on, and may continue an interrupted training.
        description: label of the progress bar.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    settings, group = fitting.settings, fitting.group
    state = group.broadcast(watch.begin(fitting))
    if state is not None:
        fitting.load_state_dict(state)
    fitting.model.train()
    with (
        _remembered_interrupt() as interrupted,
        tqdm(
            total=settings.epochs * fitting.steps,
            initial=fitting.epoch * fitting.steps,
            desc=description,
            unit="step",
            mininterval=_interval(),
            disable=not group.is_first,
        ) as progress,
    ):
        while fitting.epoch < settings.epochs:
            for x, labels in fitting.batches():
                logits, value = fitting.step(x, labels)
                watch.step(fitting, logits, labels, value)
                progress.update()
                if interrupted.is_set():
                    raise KeyboardInterrupt
            fitting.epoch += 1
            watch.end_epoch(fitting)
    fitting.finish()


@contextmanager
def _remembered_interrupt() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, besides what else it does.

    Python drops what a signal's handler raises in the callback of a weak reference, and an import
    ends with one. Torch imports a module in the first step: of 2,000 trainings of `xor`, each
    interrupted within 40 ms of its progress bar, one went on.
    """
    interrupted = threading.Event()
    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not callable(handler):  # only there may one be set; it is ignored, or in C
        yield interrupted
        return

    def remember(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        handler(number, frame)

    signal.signal(signal.SIGINT, remember)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, handler)


def _interval() -> float:
    """Without a terminal, a line every 10 s is enough for a log."""
    return 0.2 if sys.stderr.isatty() else 10.0


def _global_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device()]
    return torch.default_generator


def _averaged(network: nn.Module, decay: float) -> AveragedModel | None:
    """Follows the network's weights, and batch normalisation's running statistics alike.

    Each statistic belongs to the weights of its step, so the mean of both over the same steps fits
    together, and no pass over the data has to estimate the statistics anew.
    """
    if not decay:
        return None

    def mean(
        averaged: torch.Tensor, current: torch.Tensor, count: torch.Tensor | int
    ) -> torch.Tensor:
        if not averaged.is_floating_point():  # of batch normalisation, the number of batches
            return current
        # The first steps keep less, or after 430 steps and with a decay of 0.999, two thirds of the
        # mean would be the weights that training began with.
        share = torch.as_tensor(9 / (10 + count), dtype=averaged.dtype).clamp_min(1 - decay)
        return averaged.lerp(current, share)

    averaged = AveragedModel(network, avg_fn=mean, use_buffers=True)
    averaged.eval()
    return averaged


def _precision(settings: Settings, device: torch.device) -> AbstractContextManager[object]:
    if settings.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, settings.precision))
