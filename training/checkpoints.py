"""Keeps a training's state on disk while it runs, so that an interrupted one can continue."""

import hashlib
import io
import os
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from training.errors import TrainingError
from training.loop import Fitting, Watch
from training.recording import Recorder

# Seconds between two. An epoch of `mnist` takes longer, so each is kept; of `xor`, 5,000 pass.
_INTERVAL = 1.0
_FORMAT = 1
_DIGEST_SIZE = hashlib.sha256().digest_size


class CheckpointError(TrainingError):
    """A checkpoint cannot be continued; the message says why and what to do."""


class Checkpoints(Watch):
    """Records a training and keeps its state in a file.

    Args:
        file: where; a training that ends, well or not, removes it.
        key: of the training, as the cache has it; a checkpoint of another one is refused.
        recorder: what else looks on.
        resume: continue where the file is. Else it is left until the first checkpoint replaces it.

    Raises:
        CheckpointError: the file is corrupt, or of another training or release.
    """

    def __init__(self, file: Path, key: str, recorder: Recorder, *, resume: bool) -> None:
        self._file, self._key, self._recorder = file, key, recorder
        self._state = _read(file, key) if resume else None
        self.seed = self._state["seed"] if self._state else None

    def describe(self) -> str:
        """Where training starts, in words."""
        if self._state is None:
            return "there is no checkpoint to resume from; training starts from the beginning"
        return f"resuming after epoch {self._state['fitting']['epoch']:,} of seed {self.seed}"

    def begin(self, fitting: Fitting) -> dict[str, Any] | None:
        """Return the state to continue from, once."""
        self._recorder.begin(fitting)
        self._saved = time.monotonic()
        state, self._state = self._state, None
        if state is None:
            return None
        self._recorder.load_state_dict(state["recorder"])
        fitting_state: dict[str, Any] = state["fitting"]
        return fitting_state

    def step(
        self, fitting: Fitting, logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor
    ) -> None:
        """Let the recorder see it."""
        self._recorder.step(fitting, logits, labels, loss)

    def end_epoch(self, fitting: Fitting) -> None:
        """Write a checkpoint, if the last one is old enough."""
        self._recorder.end_epoch(fitting)
        if time.monotonic() - self._saved >= _INTERVAL:
            state = {
                "format": _FORMAT,
                "key": self._key,
                "seed": fitting.settings.seed,
                "fitting": fitting.state_dict(),
                "recorder": self._recorder.state_dict(),
            }
            _write(self._file, state)
            self._saved = time.monotonic()


def _write(file: Path, state: dict[str, Any]) -> None:
    """Replace the file in one step: whatever ends the process, there is the old one or the new."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=file.parent, prefix=".partial-")
    try:
        with os.fdopen(descriptor, "wb") as output:
            # torch's reader does not verify the checksums in its files.
            output.write(hashlib.sha256(content).digest() + content)
            output.flush()
            os.fsync(output.fileno())
        Path(partial).replace(file)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _read(file: Path, key: str) -> dict[str, Any] | None:
    """The state in a file; None if there is none."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    start_afresh = "without --resume, training starts from the beginning"
    digest, content = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
    if hashlib.sha256(content).digest() != digest:
        raise CheckpointError(f"checkpoint {file} is corrupt; {start_afresh}")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
        found = state["format"], state["key"]
    except (KeyError, RuntimeError, TypeError, pickle.UnpicklingError):
        found = None, None
    if found != (_FORMAT, key):
        raise CheckpointError(
            f"checkpoint {file} is of another training or release; {start_afresh}"
        )
    return state
