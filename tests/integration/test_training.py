"""The training command in a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from loadtest.servers import wait_until
from tests.serving import ROOT


def test_ctrl_c_leaves_nothing_half_written(tmp_path: Path) -> None:
    store, log = tmp_path / "store", tmp_path / "log"
    command = [sys.executable, "-m", "training", "xor", "--epochs", "100000000"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--out", str(store)],
            cwd=ROOT,
            stderr=output,
            start_new_session=True,
            # A shell gives its background jobs, such as this test may be, SIGINT ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (no threads)
        )
    try:
        wait_until(lambda: "xor (mlp, seed 0)" in log.read_text())
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
    assert log.read_text().endswith("interrupted: the model in training was not archived\n")
    assert not store.exists() or list(store.iterdir()) == []
