"""Trains a model unless the cache has it, and describes it for the model card."""

import hashlib
import io
import json
import os
import subprocess
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from handler.card import ModelCard
from training import cache, pipeline, summary
from training.cache import CacheError, Entry
from training.checkpoints import Checkpoints
from training.data import Data
from training.distributed import ALONE, Group
from training.history import History
from training.loop import Watch
from training.pipeline import GateError, Run, Trained
from training.recording import Recorder
from training.sources import ROOT, training_sha256

ARTIFACTS = Path(os.environ.get("TRAINING_ARTIFACTS") or "artifacts/training")

_LIBRARIES = ("torch", "torchvision", "numpy")


def train(
    run: Run,
    *,
    resume: bool = False,
    group: Group = ALONE,
    artifacts: Path | None = None,
    tensorboard: bool = False,
) -> Entry | None:
    """Train a model, unless the cache has the result of the same run.

    Args:
        run: what to train.
        resume: continue after the last checkpoint of the same run, if an interruption left one.
        group: the processes that train together, each of which calls this.
        artifacts: where to write a directory with the report, or None for none.
        tensorboard: whether to write event files there, too.

    Returns:
        None in processes other than the first.

    Raises:
        CheckpointError: the checkpoint is corrupt, or of another release.
        DataError: the data is not available.
        DistributedError: the processes cannot train together.
        GateError: the model missed a threshold.
        ExportError: TorchScript does not answer as the network does.
        OSError: the cache cannot be written to.
        SourceError: there is no training module.
    """
    name = run.recipe.name
    source_sha256, commit = training_sha256(name), _git_commit()  # before they change meanwhile
    data = run.recipe.data(run.data_directory)
    data_sha256 = data.sha256
    key = _key(run, source_sha256, data_sha256, group)
    directory = cache.directory(name) / key
    cached = _cached(directory, name) if group.is_first else None
    if group.broadcast(cached is not None):
        return cached
    checkpoint, recorder = cache.checkpoint_file(name, key), Recorder(data.validation)
    watch = Watch()
    if group.is_first:
        cache.check_writable(name)
        watch = Checkpoints(checkpoint, key, recorder, resume=resume)
        if checkpoint.exists() and not resume:
            print(f"{name}: an interrupted training is not continued, for want of --resume")
        elif resume:
            print(f"{name}: {watch.describe()}")
    try:
        trained = pipeline.train(run, data, watch=watch, group=group)
    except GateError:
        checkpoint.unlink(missing_ok=True)
        raise
    except KeyboardInterrupt:
        if checkpoint.exists():
            print(f"{name}: --resume with the same settings continues this training")
        raise
    if trained is None:
        return None
    architecture = run.recipe.architectures[run.architecture]
    card = ModelCard(
        name=name,
        version="",
        architecture=run.architecture,
        classes=run.recipe.classes,
        input_shape=run.recipe.input_shape,
        input_bounds=run.recipe.input_bounds,
        normalisation=run.recipe.normalisation,
        data_sha256=data_sha256,
        source_sha256=source_sha256,
        seed=trained.seed,
        libraries={library: metadata.version(library) for library in _LIBRARIES},
        git_commit=commit,
        metrics={"validation": trained.validation.rounded(), "test": trained.test.rounded()},
        torchscript_sha256=hashlib.sha256(trained.torchscript).hexdigest(),
        example={"instances": [data.validation.x[trained.example].tolist()]},
        example_label=int(data.validation.y[trained.example]),
        calibration=trained.calibration.rounded(),
        settings=architecture.used(run.settings),
        usage=run.recipe.usage,
    )
    entry = Entry(
        directory=directory,
        card=card,
        parameters=sum(parameter.numel() for parameter in trained.model.network.parameters()),
        max_batch_size=run.recipe.max_batch_size,
        max_batch_delay=run.recipe.max_batch_delay,
        torchscript=trained.torchscript,
    )
    weights = io.BytesIO()
    torch.save(trained.model.network.state_dict(), weights)
    cache.put(entry, weights.getvalue())
    checkpoint.unlink(missing_ok=True)
    if artifacts:
        history = recorder.history(
            model=name, architecture=run.architecture, settings=architecture.used(run.settings)
        )
        page = _report(artifacts, run, data, trained, history, tensorboard=tensorboard)
        print(f"{summary.of_history(history)}\n{name}: report in {page}")
    return entry


def _cached(directory: Path, name: str) -> Entry | None:
    """The entry in a directory, which becomes the newest; None if it is corrupt or missing."""
    if not directory.exists():
        return None
    try:
        entry = cache.load(directory)
    except CacheError as error:
        print(f"{error}; training {name} again")
        return None
    os.utime(directory)
    print(f"{name}: already trained with this code, data, settings and seed")
    return entry


def _report(  # noqa: PLR0913 (all that a report is of)
    artifacts: Path,
    run: Run,
    data: Data,
    trained: Trained,
    history: History,
    *,
    tensorboard: bool,
) -> Path:
    """Write the directory of a run in one step, and return its report."""
    from training import report  # Matplotlib takes a second, and only this needs it

    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    target = artifacts / f"{run.recipe.name}-{run.architecture}-{trained.seed}-{now}"
    artifacts.mkdir(parents=True, exist_ok=True)
    evaluation = {
        "validation": trained.validation.rounded(),
        "test": trained.test.rounded(),
        "calibration": trained.calibration.rounded(),
    }
    with tempfile.TemporaryDirectory(dir=artifacts, prefix=".partial-") as temporary:
        stage = Path(temporary) / target.name
        stage.mkdir()
        file = report.write(stage, history, trained.model, data, run.recipe, evaluation)
        if tensorboard:
            from training import tensorboard as events  # as slow to import as torch

            events.write(stage, history)
        # Two runs of one second are two runs.
        while target.exists():
            target = target.with_name(f"{target.name}+")
        stage.rename(target)
    return target / file.relative_to(stage)


def _key(run: Run, source_sha256: str, data_sha256: str, group: Group) -> str:
    """Digest of everything that the weights depend on, besides the machine."""
    parts = {
        "source": source_sha256,
        "data": data_sha256,
        "architecture": run.architecture,
        "settings": run.recipe.architectures[run.architecture].used(run.settings),
        "device": run.device.type,
        "processes": group.size,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _git_commit() -> str:
    """The commit checked out, with `-dirty` where files differ from it; empty without git."""
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(ROOT), *arguments],  # noqa: S607 (whichever git there is)
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{commit}-dirty" if status else commit
