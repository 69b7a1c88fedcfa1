"""One model from data to TorchScript: fit, evaluate, gate, export.

This module and what it imports decide the weights, and a change of their code trains the model
anew. What does not belongs elsewhere.
"""

import io
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from training.calibration import Calibration, calibrate
from training.data import Data
from training.distributed import ALONE, Group
from training.errors import TrainingError
from training.evaluation import Evaluation, evaluate, predict
from training.export import ServedModel, to_torchscript
from training.loop import Fitting, Watch, fit, seed_everything
from training.recipe import Architecture, Recipe
from training.settings import Settings


class GateError(TrainingError):
    """The model misses a threshold; the message says which."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the command line asked for.

    Attributes:
        recipe: of the model.
        architecture: a name among the recipe's.
        settings: its seed is the first to try.
        device: where to train.
        data_directory: cache of the data.
    """

    recipe: Recipe
    architecture: str
    settings: Settings
    device: torch.device
    data_directory: Path


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training a model results in.

    Attributes:
        model: calibrated, on the CPU, in evaluation mode.
        torchscript: content of the TorchScript file.
        seed: the one that the weights came from.
        calibration: the temperature in the TorchScript, from the validation split.
        validation: metrics of the TorchScript.
        test: likewise.
        example: index of the first validation instance that the TorchScript labels correctly.
    """

    model: ServedModel
    torchscript: bytes
    seed: int
    calibration: Calibration
    validation: Evaluation
    test: Evaluation
    example: int


def train(run: Run, data: Data, *, watch: Watch, group: Group = ALONE) -> Trained | None:
    """Train a model, and calibrate it on the split that decisions are made on.

    Args:
        run: what to train.
        data: to train on.
        watch: looks on, and may continue an interrupted training.
        group: the processes that train together, each of which calls this.

    Returns:
        None in processes other than the first.

    Raises:
        GateError: the model missed a threshold.
        ExportError: TorchScript does not answer as the network does.
        DistributedError: the processes cannot share a batch evenly.
    """
    fitted = _fit_until_good(run, data, watch, group)
    if fitted is None:
        return None
    model, seed = fitted
    calibration = calibrate(predict(model.logits, data.validation.x), data.validation.y)
    model.temperature = calibration.temperature
    torchscript = to_torchscript(model, data.validation.x)
    scripted = torch.jit.load(io.BytesIO(torchscript))
    return Trained(
        model=model,
        torchscript=torchscript,
        seed=seed,
        calibration=calibration,
        validation=evaluate(scripted, data.validation),
        test=evaluate(scripted, data.test),
        example=_first_correct(scripted, data),
    )


def _fit_until_good(
    run: Run, data: Data, watch: Watch, group: Group
) -> tuple[ServedModel, int] | None:
    """The first of the recipe's attempts that passes the gate, and its seed.

    The first process judges for all; the others return None.
    """
    recipe, architecture = run.recipe, run.recipe.architectures[run.architecture]
    train, validation = data.train.to(run.device), data.validation.to(run.device)
    first = run.settings.seed
    begin = group.broadcast(first if watch.seed is None else watch.seed)
    for seed in range(begin, first + recipe.attempts):
        seed_everything(seed)
        network = architecture.build(run.settings)
        model = ServedModel(recipe.normalise, network).to(run.device)
        title = f"{recipe.name} ({run.architecture}, seed {seed})"
        settings = replace(run.settings, seed=seed)
        fitting = Fitting(
            model,
            settings,
            train,
            augmentation=architecture.augmentation,
            group=group,
        )
        fit(fitting, watch, description=title)
        shortfall = group.broadcast(_shortfall(architecture, evaluate(model, validation)))
        if shortfall is None:
            return (model.cpu(), seed) if group.is_first else None
        if seed + 1 < first + recipe.attempts:
            # Unlike print, this does not break a progress bar.
            tqdm.write(f"{title} is stuck: {shortfall}; starting again with seed {seed + 1}")
    if not group.is_first:
        return None
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
