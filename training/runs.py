"""From the options of `python -m training train` to runs."""

import argparse
from collections.abc import Iterable
from dataclasses import replace

import torch

from training.data import MNIST_DIR
from training.errors import TrainingError
from training.loop import OPTIMIZERS
from training.pipeline import Run
from training.recipe import NetworkOptions
from training.registry import load_recipe


class UsageError(TrainingError):
    """An option does not fit the model or the machine; the message names it."""


def make_runs(names: Iterable[str], options: argparse.Namespace) -> list[Run]:
    """A run for each model, with what its recipe sets where an option is None.

    Raises:
        UsageError: an option does not fit.
    """
    has_cuda = torch.cuda.is_available()
    if options.device == "cuda" and not has_cuda:
        raise UsageError("--device cuda: torch finds no CUDA device")
    if options.optimizer not in {None, *OPTIMIZERS}:
        known = ", ".join(OPTIMIZERS)
        raise UsageError(f"--optimizer {options.optimizer}: expected one of {known}")
    device = torch.device("cuda" if has_cuda and options.device != "cpu" else "cpu")
    of_network = {
        "hidden": options.hidden,
        "dropout": options.dropout,
        "batch_norm": options.batch_norm,
    }
    given = {name: value for name, value in of_network.items() if value is not None}
    runs = []
    for name in names:
        recipe = load_recipe(name)
        architecture = options.arch or next(iter(recipe.architectures))
        if architecture not in recipe.architectures:
            known = ", ".join(recipe.architectures)
            raise UsageError(f"--arch {architecture}: model {name} has {known}")
        if given and not recipe.architectures[architecture].has_options:
            option = next(iter(given)).replace("_", "-")
            raise UsageError(f"--{option}: network {architecture} of model {name} has no options")
        optimizer = options.optimizer or recipe.optimizer
        default_rate = (
            recipe.learning_rate
            if optimizer == recipe.optimizer
            else OPTIMIZERS[optimizer].learning_rate
        )
        recipe = replace(
            recipe,
            epochs=options.epochs or recipe.epochs,
            optimizer=optimizer,
            learning_rate=options.learning_rate or default_rate,
        )
        runs.append(
            Run(
                recipe=recipe,
                architecture=architecture,
                network=NetworkOptions(**given),
                seed=options.seed,
                device=device,
                data_directory=options.data_dir or MNIST_DIR,
            )
        )
    return runs
