"""The training commands in processes of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from loadtest import digits
from loadtest.servers import wait_until
from tests.serving import ROOT
from training.data import MNIST_DIR
from training.digits import write


def test_ctrl_c_leaves_nothing_half_written(tmp_path: Path) -> None:
    cache, log = tmp_path / "cache", tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "training", "train", "xor", "--epochs", "100000000"],
            cwd=ROOT,
            env=os.environ
            | {"TRAINING_CACHE": str(cache), "TRAINING_ARTIFACTS": str(tmp_path / "artifacts")},
            stderr=output,
            start_new_session=True,
            # A shell gives its background jobs, such as this test may be, SIGINT ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (no threads)
        )
    try:
        wait_until(lambda: "xor (mlp, seed 1)" in log.read_text())
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
    assert log.read_text().endswith("interrupted: nothing half-written is left\n")
    assert list((cache / "xor").iterdir()) == []
    assert not (tmp_path / "artifacts").exists()


def test_the_sample_digits_of_the_load_test_are_written_again(tmp_path: Path) -> None:
    write(tmp_path / "digits.zip", ROOT / MNIST_DIR)
    assert (tmp_path / "digits.zip").read_bytes() == digits.FILE.read_bytes()
