"""The report of a training: for now, its history."""

from pathlib import Path
from typing import Any

from torch import nn

from training.data import Data
from training.history import History
from training.recipe import Recipe


def write(  # noqa: PLR0913, PLR0917 (all that a report can be of)
    directory: Path,
    history: History,
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    evaluation: dict[str, Any],
) -> Path:
    """Write what a training was like into a directory, and return the file to open."""
    del model, data, recipe, evaluation
    file = directory / "history.json"
    file.write_text(history.to_json())
    return file
