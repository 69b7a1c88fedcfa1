"""One model from data to TorchScript: fit, evaluate, gate, export.

This module and what it imports decide the weights, and a change of their code trains the model
anew. What does not belongs elsewhere.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from training.data import Data
from training.errors import TrainingError
from training.evaluation import Evaluation, evaluate, predict
from training.export import ServedModel, to_torchscript
from training.loop import fit, seed_everything
from training.recipe import Architecture, NetworkOptions, Recipe


class GateError(TrainingError):
    """The model misses a threshold; the message says which."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the command line asked for.

    Attributes:
        recipe: with the requested changes.
        architecture: a name among the recipe's.
        network: options of the network.
        seed: the first to try.
        device: where to train.
        data_directory: cache of the data.
    """

    recipe: Recipe
    architecture: str
    network: NetworkOptions
    seed: int
    device: torch.device
    data_directory: Path


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training a model results in.

    Attributes:
        network: on the CPU, in evaluation mode.
        torchscript: content of the TorchScript file.
        seed: the one that the weights came from.
        validation: metrics of the network.
        test: metrics of the TorchScript.
        example: index of the first validation instance that the TorchScript labels correctly.
    """

    network: nn.Module
    torchscript: bytes
    seed: int
    validation: Evaluation
    test: Evaluation
    example: int


def train(run: Run, data: Data) -> Trained:
    """Train a model.

    Raises:
        GateError: the model missed a threshold.
        ExportError: TorchScript does not answer as the network does.
    """
    model, seed, validation = _fit_until_good(run, data)
    torchscript = to_torchscript(model, data.validation.x)
    scripted = torch.jit.load(io.BytesIO(torchscript))
    return Trained(
        network=model.network,
        torchscript=torchscript,
        seed=seed,
        validation=validation,
        test=evaluate(scripted, data.test),
        example=_first_correct(scripted, data),
    )


def _fit_until_good(run: Run, data: Data) -> tuple[ServedModel, int, Evaluation]:
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
            # Unlike print, this does not break a progress bar.
            tqdm.write(f"{title} is stuck: {shortfall}; starting again with seed {seed + 1}")
    raise GateError(f"{recipe.name}: {shortfall}; the model was discarded")


def _shortfall(architecture: Architecture, evaluation: Evaluation) -> str | None:
    """The first threshold that the validation metrics miss, or None."""
    required = {
        "accuracy": (evaluation.accuracy, architecture.min_accuracy),
        "least confidence": (evaluation.min_confidence, architecture.min_confidence),
    }
    for name, (value, minimum) in required.items():
        if not value >= minimum:  # also where the value is NaN
            return f"validation {name} {value:.4f} is under {minimum:g}"
    return None


def _first_correct(model: nn.Module, data: Data) -> int:
    """Index of the first validation instance that the model labels correctly."""
    correct = predict(model, data.validation.x).argmax(dim=1) == data.validation.y
    return int(correct.int().argmax())
