"""From the options of `python -m training train`, and a configuration file, to runs."""

import argparse
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from training.data import MNIST_DIR
from training.errors import TrainingError
from training.pipeline import Run
from training.recipe import Recipe
from training.registry import MODELS, load_recipe
from training.settings import (
    KINDS,
    LEARNING_RATES,
    OF_NETWORK,
    SettingError,
    Settings,
    checked,
)

_ARCHITECTURE = "arch"


class UsageError(TrainingError):
    """An option does not fit the model or the machine; the message names it."""


@dataclass(frozen=True)
class Given:
    """A value and who gave it, as an error names it: an option, or a key in a file."""

    value: Any
    source: str


def make_runs(names: Iterable[str], options: argparse.Namespace) -> list[Run]:
    """A run for each model: what options set, else the file, else the architecture.

    Raises:
        UsageError: an option or the file does not fit.
    """
    has_cuda = torch.cuda.is_available()
    if options.device == "cuda" and not has_cuda:
        raise UsageError("--device cuda: torch finds no CUDA device")
    device = torch.device("cuda" if has_cuda and options.device != "cpu" else "cpu")
    file = _read(options.config) if options.config else {}
    from_options = {
        name: Given(value, f"--{name.replace('_', '-')}")
        for name in (_ARCHITECTURE, *KINDS)
        if (value := getattr(options, name)) is not None
    }
    runs = []
    for name in names:
        recipe = load_recipe(name)
        given = file.get(name, {}) | from_options
        default = (options.quick and recipe.quick) or recipe.default
        architecture = _architecture(recipe, given.pop(_ARCHITECTURE, None), default)
        runs.append(
            Run(
                recipe=recipe,
                architecture=architecture,
                settings=_settings(recipe, architecture, given),
                device=device,
                data_directory=options.data_dir or MNIST_DIR,
            )
        )
    return runs


def to_toml(run: Run) -> str:
    """The table of a configuration file that makes the same run."""
    settings = run.recipe.architectures[run.architecture].used(run.settings)
    # Every value is written in TOML as in JSON.
    values = {_ARCHITECTURE: run.architecture} | settings
    lines = (f"{name} = {json.dumps(value)}" for name, value in values.items())
    return "\n".join([f"[{run.recipe.name}]", *lines])


def _read(file: Path) -> dict[str, dict[str, Given]]:
    """The tables of a configuration file, one a model, each value checked.

    Raises:
        UsageError: it cannot be read, or has a table, key or value that does not exist.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--config {file}: {error}") from None
    read: dict[str, dict[str, Given]] = {}
    for model, table in tables.items():
        if model not in MODELS or not isinstance(table, dict):
            known = ", ".join(f"[{name}]" for name in MODELS)
            raise UsageError(f"{file}: {model}: expected a table of a model: {known}")
        read[model] = {}
        for name, value in table.items():
            source = f"{file}: [{model}] {name}"
            if name == _ARCHITECTURE:
                read[model][name] = Given(value, source)
                continue
            if name not in KINDS:
                known = ", ".join((_ARCHITECTURE, *KINDS))
                raise UsageError(f"{source}: expected one of {known}")
            try:
                read[model][name] = Given(checked(name, value), source)
            except SettingError as error:
                raise UsageError(f"{source}: {error.reason}") from None
    return read


def _architecture(recipe: Recipe, given: Given | None, default: str) -> str:
    if given is None:
        return default
    if given.value not in tuple(recipe.architectures):
        known = ", ".join(recipe.architectures)
        raise UsageError(f"{given.source}: model {recipe.name} has {known}, not {given.value!r}")
    return str(given.value)


def _settings(recipe: Recipe, architecture: str, given: Mapping[str, Given]) -> Settings:
    """An architecture's settings with the given ones in their place."""
    network = recipe.architectures[architecture]
    for name, setting in given.items():
        if name in OF_NETWORK - network.uses:
            raise UsageError(
                f"{setting.source}: network {architecture} of model {recipe.name} does not use it"
            )
    defaults = network.settings
    if "optimizer" in given and given["optimizer"].value != defaults.optimizer:
        optimizer = given["optimizer"].value
        defaults = replace(
            defaults,
            optimizer=optimizer,
            learning_rate=LEARNING_RATES[optimizer],
            momentum=0.0,
            nesterov=False,
        )
    try:
        return replace(defaults, **{name: setting.value for name, setting in given.items()})
    except SettingError as error:
        source = given[error.name].source if error.name in given else error.name
        raise UsageError(f"{source}: {error.reason}") from None
