"""Trains a model unless the cache has it, and describes it for the model card."""

import hashlib
import io
import json
import os
import subprocess
from importlib import metadata

import torch

from handler.card import ModelCard
from training import cache, pipeline
from training.cache import CacheError, Entry
from training.pipeline import Run
from training.sources import ROOT, training_sha256

_LIBRARIES = ("torch", "torchvision", "numpy")


def train(run: Run) -> Entry:
    """Train a model, unless the cache has the result of the same run.

    Raises:
        DataError: the data is not available.
        GateError: the model missed a threshold.
        ExportError: TorchScript does not answer as the network does.
        OSError: the cache cannot be written to.
        SourceError: there is no training module.
    """
    name = run.recipe.name
    source_sha256, commit = training_sha256(name), _git_commit()  # before they change meanwhile
    data = run.recipe.data(run.data_directory)
    data_sha256 = data.sha256
    directory = cache.directory(name) / _key(run, source_sha256, data_sha256)
    if directory.exists():
        try:
            entry = cache.load(directory)
        except CacheError as error:
            print(f"{error}; training {name} again")
        else:
            os.utime(directory)  # makes it the newest
            print(f"{name}: already trained with this code, data, settings and seed")
            return entry
    cache.check_writable(name)
    trained = pipeline.train(run, data)
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
        parameters=sum(parameter.numel() for parameter in trained.network.parameters()),
        max_batch_size=run.recipe.max_batch_size,
        max_batch_delay=run.recipe.max_batch_delay,
        torchscript=trained.torchscript,
    )
    weights = io.BytesIO()
    torch.save(trained.network.state_dict(), weights)
    cache.put(entry, weights.getvalue())
    return entry


def summary(entry: Entry) -> str:
    """What was trained, and how good it is."""
    card, validation, test = (
        entry.card,
        entry.card.metrics["validation"],
        entry.card.metrics["test"],
    )
    return (
        f"{card.name}: {card.architecture}, {entry.parameters:,} parameters, seed {card.seed}\n"
        f"  validation accuracy {validation['accuracy']:.4f} of {validation['instances']:,}, "
        f"test accuracy {test['accuracy']:.4f} of {test['instances']:,}, "
        f"least confidence {validation['min_confidence']:.4f}\n"
        f"  TorchScript SHA-256 {card.torchscript_sha256[:12]}, in {entry.directory}"
    )


def _key(run: Run, source_sha256: str, data_sha256: str) -> str:
    """Digest of everything that the weights depend on, besides the machine."""
    parts = {
        "source": source_sha256,
        "data": data_sha256,
        "architecture": run.architecture,
        "settings": run.recipe.architectures[run.architecture].used(run.settings),
        "device": run.device.type,
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
