"""One model from data to archive: train, evaluate, gate, export, pack."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import torch

from handler.card import ModelCard
from training import archive, report
from training.data import Data
from training.evaluation import Evaluation, evaluate, predict
from training.export import ServedModel, to_torchscript
from training.loop import fit, seed_everything
from training.recipe import Architecture, NetworkOptions, Recipe

VERSION = "1.0"


class GateError(Exception):
    """The model is not good enough to be archived; the message says by what."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the command line asked for.

    Attributes:
        recipe: with the changes asked for.
        architecture: a name among the recipe's.
        network: options of the network.
        seed: the first to try.
        device: where to train.
        data_directory: cache of the data.
        store: directory of the archives.
    """

    recipe: Recipe
    architecture: str
    network: NetworkOptions
    seed: int
    device: torch.device
    data_directory: Path
    store: Path


def make(run: Run) -> Path:
    """Train a model and archive it.

    Returns:
        The archive's path.

    Raises:
        DataError: the data cannot be had.
        GateError: the model fell short; the store is as it was.
        ExportError: TorchScript does not answer as the network does; likewise.
        ArchiveError: the archive cannot be built; likewise.
    """
    recipe = run.recipe
    archive.handler_files(recipe.name)  # before minutes of training, not after
    data = recipe.data(run.data_directory)
    model, seed, validation = _train(run, data)
    content = to_torchscript(model, data.validation.x)
    scripted = torch.jit.load(io.BytesIO(content))
    test = evaluate(scripted, data.test)
    example = _first_right(scripted, data)
    card = ModelCard(
        name=recipe.name,
        version=VERSION,
        architecture=run.architecture,
        classes=recipe.classes,
        input_shape=recipe.input_shape,
        input_bounds=recipe.input_bounds,
        normalisation=recipe.normalisation,
        data_sha256=data.sha256,
        source_sha256=archive.source_sha256(recipe.name),
        seed=seed,
        libraries=archive.library_versions(),
        git_commit=archive.git_commit(),
        metrics={"validation": validation.rounded(), "test": test.rounded()},
        torchscript_sha256=hashlib.sha256(content).hexdigest(),
        example={"instances": [data.validation.x[example].tolist()]},
        example_label=int(data.validation.y[example]),
    )
    file = archive.build(recipe, card, content, run.store)
    report.summary(card, file, parameters=sum(p.numel() for p in model.parameters()))
    return file


def _train(run: Run, data: Data) -> tuple[ServedModel, int, Evaluation]:
    """The first of the recipe's attempts that passes the gate: model, its seed, its evaluation."""
    recipe, architecture = run.recipe, run.recipe.architectures[run.architecture]
    train, validation = data.train.to(run.device), data.validation.to(run.device)
    for seed in range(run.seed, run.seed + recipe.attempts):
        seed_everything(seed)
        network = architecture.build(run.network)
        model = ServedModel(recipe.normalise, network, recipe.probabilities).to(run.device)
        title = f"{recipe.name} ({run.architecture}, seed {seed})"
        fit(model, recipe, train, seed=seed, description=title)
        evaluation = evaluate(model, validation)
        shortfall = _shortfall(architecture, evaluation)
        if shortfall is None:
            return model.cpu(), seed, evaluation
        if seed + 1 < run.seed + recipe.attempts:
            report.line(f"{title} is stuck: {shortfall}; starting again with seed {seed + 1}")
    raise GateError(
        f"{recipe.name}: {shortfall}; not archived, {run.store / recipe.name}.mar is as it was"
    )


def _shortfall(architecture: Architecture, evaluation: Evaluation) -> str | None:
    """What the gate finds too low on the validation split, if anything."""
    required = {
        "accuracy": (evaluation.accuracy, architecture.min_accuracy),
        "least confidence": (evaluation.min_confidence, architecture.min_confidence),
    }
    for name, (value, minimum) in required.items():
        if not value >= minimum:  # also where it is not a number
            return f"validation {name} {value:.4f} is under {minimum:g}"
    return None


def _first_right(model: torch.nn.Module, data: Data) -> int:
    """Index of the first validation instance that the model labels right."""
    right = predict(model, data.validation.x).argmax(dim=1) == data.validation.y
    return int(right.int().argmax())
