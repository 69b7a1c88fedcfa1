"""Trainings that are killed at any moment, and continued."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from loadtest.servers import wait_until
from tests.serving import ROOT

# Long enough to be killed in: 8 epochs of 7 steps, and 20,000 steps with a checkpoint a second.
CNN = ["tests.few_digits", "train", "mnist", "--epochs", "8", "--average-decay", "0.9"]
XOR = ["training", "train", "xor", "--seed", "1", "--epochs", "20000"]


def start(command: Sequence[str], directory: Path) -> subprocess.Popen[str]:
    environment = {
        "TRAINING_CACHE": str(directory / "cache"),
        "TRAINING_ARTIFACTS": str(directory / "artifacts"),
    }
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def weights(directory: Path, model: str) -> dict[str, bytes]:
    (entry,) = (directory / "cache" / model).iterdir()
    return {name: (entry / name).read_bytes() for name in ("weights.pt", "model.pt")}


@pytest.mark.parametrize("command", [CNN, XOR], ids=["mnist", "xor"])
def test_a_training_killed_three_times_gives_the_same_weights(
    command: list[str], tmp_path: Path
) -> None:
    model = command[2]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = start(command, whole)
    uninterrupted.communicate(timeout=600)
    assert uninterrupted.returncode == 0
    checkpoints = killed / "cache" / "checkpoints"

    def written() -> int:
        return max((file.stat().st_mtime_ns for file in checkpoints.glob("*.pt")), default=0)

    def has_new(before: int) -> bool:
        return written() > before

    for _ in range(3):
        before = written()
        process = start([*command, "--resume"], killed)
        try:
            wait_until(partial(has_new, before), 300)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert list((killed / "cache" / model).iterdir()) == []
    last = start([*command, "--resume"], killed)
    printed, _ = last.communicate(timeout=600)
    assert last.returncode == 0
    assert f"{model}: resuming after epoch " in printed
    assert weights(killed, model) == weights(whole, model)
    assert list(checkpoints.glob("*.pt")) == []
    assert len(list((killed / "artifacts").iterdir())) == 1
