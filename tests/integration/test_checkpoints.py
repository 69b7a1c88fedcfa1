from pathlib import Path

import pytest
import torch

from tests.blobs import BLOBS, run, trained
from tests.unit.test_loop import StoppedError, fitting, points
from training import cache, checkpoints
from training.__main__ import main
from training.checkpoints import CheckpointError, Checkpoints
from training.loop import Fitting, fit
from training.pipeline import GateError
from training.recording import Recorder
from training.train import train


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where checkpoints are; each epoch leaves one."""
    monkeypatch.setenv("TRAINING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoints, "_INTERVAL", 0.0)
    return tmp_path / "cache" / "checkpoints"


@pytest.fixture
def interrupted(
    monkeypatch: pytest.MonkeyPatch, directory: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    """The checkpoint of a training of clouds that ended in its fourth epoch."""
    with monkeypatch.context() as patch:
        patch.setattr(Fitting, "step", stopping_step)
        with pytest.raises(KeyboardInterrupt):
            trained()
    told = "xor: --resume with the same settings continues this training\n"
    assert capsys.readouterr().out == told
    (file,) = directory.iterdir()
    return file


step = Fitting.step


def stopping_step(
    self: Fitting, x: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if self.epoch == 3:
        raise KeyboardInterrupt
    return step(self, x, labels)


def test_an_interrupted_training_continues_where_it_was(
    interrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    resumed = train(run(), resume=True)
    assert resumed is not None
    assert "xor: resuming after epoch 3 of seed 0\n" in capsys.readouterr().out
    assert not interrupted.exists()
    monkeypatch.setenv("TRAINING_CACHE", str(tmp_path / "other"))
    assert trained().torchscript == resumed.torchscript


def test_without_resume_it_is_said_and_started_afresh(
    interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    trained()
    assert (
        "xor: an interrupted training is not continued, for want of --resume\n"
        in capsys.readouterr().out
    )
    assert not interrupted.exists()


def test_nothing_to_resume_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert train(run(), resume=True) is not None
    assert "xor: there is no checkpoint to resume from; " in capsys.readouterr().out


def test_other_settings_do_not_find_it(
    interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(run(epochs=21), resume=True)
    assert "xor: there is no checkpoint to resume from; " in capsys.readouterr().out
    assert interrupted.exists()


@pytest.mark.parametrize("damage", ["altered", "cut", "empty"])
def test_a_corrupt_checkpoint_is_an_error(
    interrupted: Path,
    damage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = interrupted.read_bytes()
    half = len(content) // 2
    altered = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    interrupted.write_bytes({"altered": altered, "cut": content[:half], "empty": b""}[damage])
    monkeypatch.setattr("training.runs.load_recipe", lambda _: BLOBS)
    assert main(["train", "xor", "--resume"]) == 1
    error = f"error: checkpoint {interrupted} is corrupt; without --resume, training starts from "
    assert error in capsys.readouterr().err


def test_a_checkpoint_of_another_training_is_an_error(interrupted: Path) -> None:
    recorder = Recorder(points())
    with pytest.raises(CheckpointError, match="is of another training or release; without"):
        Checkpoints(interrupted, "other", recorder, resume=True)


def test_a_stuck_attempt_is_not_repeated(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is interrupted in the second attempt continues with the second."""
    strict = {
        name: architecture.__class__(**(vars(architecture) | {"min_accuracy": 1.01}))
        for name, architecture in BLOBS.architectures.items()
    }
    recipe = BLOBS.__class__(**(vars(BLOBS) | {"architectures": strict, "attempts": 2}))

    def stop_in_second(
        self: Fitting, x: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.settings.seed == 1 and self.epoch == 2:
            raise KeyboardInterrupt
        return step(self, x, labels)

    with monkeypatch.context() as patch:
        patch.setattr(Fitting, "step", stop_in_second)
        with pytest.raises(KeyboardInterrupt):
            trained(recipe)
    capsys.readouterr()
    with pytest.raises(GateError):
        train(run(recipe), resume=True)
    printed = capsys.readouterr().out
    assert "xor: resuming after epoch 2 of seed 1\n" in printed
    assert "stuck" not in printed
    assert list(directory.iterdir()) == []


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "state.pt"

    def watch() -> Checkpoints:
        return Checkpoints(file, "key", Recorder(points()), resume=False)

    class StopAfterWriting(Checkpoints):
        def end_epoch(self, fitting: Fitting) -> None:
            super().end_epoch(fitting)
            raise StoppedError

    with pytest.raises(StoppedError):
        fit(
            fitting(),
            StopAfterWriting(file, "key", Recorder(points()), resume=False),
            description="points",
        )
    before = file.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        fit(fitting(), watch(), description="points")
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_an_entry_in_the_cache_needs_no_checkpoint(interrupted: Path) -> None:
    entry = train(run(), resume=True)
    assert train(run(), resume=True) == entry
    assert cache.entries("xor") == [entry]
    assert not interrupted.exists()
