import signal
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from training.data import Split
from training.distributed import DistributedError, Group
from training.export import ServedModel
from training.loop import Fitting, Watch, fit, seed_everything
from training.recipe import Augmentation
from training.settings import Settings

SETTINGS = Settings(
    epochs=4, batch_size=8, optimizer="adamw", schedule="one_cycle", average_decay=0.9
)


class StoppedError(Exception):
    pass


class Stop(Watch):
    """Stops a training after an epoch and keeps its state; `begin` returns a state."""

    def __init__(self, after: int | None = None, state: dict[str, Any] | None = None) -> None:
        self.after = after
        self.state = state

    def begin(self, _: Fitting) -> dict[str, Any] | None:
        return self.state

    def end_epoch(self, fitting: Fitting) -> None:
        if fitting.epoch == self.after:
            self.state = fitting.state_dict()
            raise StoppedError


class Interrupt(Watch):
    """Presses Ctrl-C in the callback of a weak reference, in the first step."""

    steps = 0

    def step(self, *_: object) -> None:
        self.steps += 1
        if self.steps == 1:
            thing = nn.Identity()
            reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
            del thing
            assert reference() is None


@contextmanager
def handling(handler: Any) -> Iterator[None]:
    """Ctrl-C handled so, at the end, too; a shell's background jobs begin with it ignored."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def points() -> Split:
    y = torch.arange(50) % 2
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) + 3 * y.unsqueeze(1)
    return Split(x, y)


def jitter(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def fitting(settings: Settings = SETTINGS) -> Fitting:
    seed_everything(settings.seed)
    network = nn.Sequential(
        nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 2)
    )
    return Fitting(
        ServedModel(nn.Identity(), network), settings, points(), augmentation=Augmentation(jitter)
    )


def fitted(watch: Watch, settings: Settings = SETTINGS) -> dict[str, torch.Tensor]:
    training = fitting(settings)
    fit(training, watch, description="points")
    return training.model.network.state_dict()


def is_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_a_training_continues_bit_for_bit(epoch: int) -> None:
    stop = Stop(after=epoch)
    with pytest.raises(StoppedError):
        fitted(stop)
    assert is_equal(fitted(Stop(state=stop.state)), fitted(Watch()))


def test_the_seed_decides_the_weights() -> None:
    whole = fitted(Watch())
    assert is_equal(fitted(Watch()), whole)
    assert not is_equal(fitted(Watch(), Settings(epochs=4, batch_size=8, seed=1)), whole)


def test_every_epoch_has_another_order_and_augmentation() -> None:
    training = fitting()
    first = torch.cat([x for x, _ in training.batches()])
    assert torch.cat([x for x, _ in training.batches()]).equal(first)
    training.epoch = 1
    second = torch.cat([x for x, _ in training.batches()])
    assert not second.equal(first)
    assert not second.sort(dim=0).values.equal(first.sort(dim=0).values)


def test_the_average_forgets_the_beginning_and_follows_statistics_too() -> None:
    training = fitting()
    expected: dict[str, torch.Tensor] = {}
    for count, (x, labels) in enumerate(training.batches()):
        training.step(x, labels)
        current = training.model.network.state_dict()
        share = 1.0 if count == 0 else max(0.1, 9 / (10 + count))
        for name, value in current.items():
            before = expected.get(name, value)
            expected[name] = before + share * (value - before)
    assert count == 5
    averaged = training.served.network.state_dict()
    assert averaged["1.running_mean"].abs().sum() > 0
    for name, value in averaged.items():
        if value.is_floating_point():
            assert torch.allclose(value, expected[name], atol=1e-6)
    assert not averaged["0.weight"].allclose(training.model.network.state_dict()["0.weight"])
    training.finish()
    assert is_equal(training.model.network.state_dict(), averaged)


def test_without_an_average_the_last_weights_are_served() -> None:
    training = fitting(Settings(batch_size=8))
    assert training.served is training.model


def test_mixed_precision_learns() -> None:
    training = fitting(Settings(epochs=20, batch_size=10, learning_rate=0.05, precision="bfloat16"))
    fit(training, Watch(), description="points")
    split = points()
    with torch.inference_mode():
        answers = training.model(split.x).argmax(dim=1)
    assert (answers == split.y).float().mean() > 0.9
    assert {p.dtype for p in training.model.parameters()} == {torch.float32}


class TestInterrupt:
    def test_what_python_drops_is_not_lost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dropped: list[type[BaseException]] = []
        monkeypatch.setattr(sys, "unraisablehook", lambda args: dropped.append(args.exc_type))
        watch = Interrupt()
        with handling(signal.default_int_handler), pytest.raises(KeyboardInterrupt):
            fitted(watch)
        assert dropped == [KeyboardInterrupt]
        assert watch.steps == 1

    def test_it_stays_ignored(self) -> None:
        watch = Interrupt()
        with handling(signal.SIG_IGN):
            fitted(watch)
        assert watch.steps == 24

    def test_another_thread_trains_without_it(self) -> None:
        with ThreadPoolExecutor(1) as thread:
            weights = thread.submit(fitted, Watch()).result()
        assert is_equal(weights, fitted(Watch()))


class TestGroup:
    def test_the_parts_of_a_batch_are_the_batch(self) -> None:
        batch = torch.arange(12)
        parts = [Group(rank, 3).part(batch) for rank in range(3)]
        assert [len(part) for part in parts] == [4, 4, 4]
        assert torch.cat(parts).sort().values.equal(batch)

    def test_a_batch_without_equal_parts_is_refused(self) -> None:
        with pytest.raises(DistributedError, match="a batch of 12 instances has no 5 equal parts"):
            Group(0, 5).part(torch.arange(12))

    def test_processes_take_parts_of_the_same_batch_and_augment_differently(self) -> None:
        def first_batch(group: Group, augmented: bool) -> torch.Tensor:
            augmentation = Augmentation(jitter) if augmented else None
            training = Fitting(fitting().model, SETTINGS, points(), augmentation=augmentation)
            training.group = group
            return next(training.batches())[0]

        whole = first_batch(Group(), augmented=False)
        for rank in (0, 1):
            assert first_batch(Group(rank, 2), augmented=False).equal(whole[rank::2])
        noise = [first_batch(Group(rank, 2), augmented=True) - whole[rank::2] for rank in (0, 1)]
        assert not noise[0].allclose(noise[1])
