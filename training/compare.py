"""Compares two trained models on the data held out for decisions."""

import io
from dataclasses import dataclass
from pathlib import Path

import torch

from handler.card import TORCHSCRIPT_FILE, ModelCard
from training import cache
from training.archive import ArchiveError, read_archive
from training.evaluation import evaluate, predict
from training.listing import columns, metric_of_test
from training.registry import MODELS, load_recipe


@dataclass(frozen=True)
class Candidate:
    """A trained model, from an archive or from the cache.

    Attributes:
        title: how the command line names it.
        card: its model card.
        torchscript: content of the TorchScript file.
    """

    title: str
    card: ModelCard
    torchscript: bytes


def candidate(reference: str) -> Candidate:
    """The model that a path of an archive, `NAME` or `NAME@DIGEST` refers to.

    Raises:
        ArchiveError: the archive cannot be read, or has no model card.
        CacheError: the cache has no such model.
    """
    if not reference.endswith(".mar"):
        entry = cache.find(reference)
        return Candidate(reference, entry.card, entry.torchscript)
    archive = read_archive(Path(reference))
    if not archive.is_ours:
        raise ArchiveError(f"{reference} has no model card: this project did not build it")
    return Candidate(reference, archive.card(), archive.content[TORCHSCRIPT_FILE])


def compare(first: Candidate, second: Candidate, data_directory: Path) -> str:
    """A table of both models' metrics, and how often their labels differ on the validation split.

    Raises:
        ArchiveError: they are different models, or not registered here.
        DataError: the data is not available.
    """
    name = first.card.name
    if second.card.name != name or name not in MODELS:
        raise ArchiveError(
            f"{first.title} is model {name} and {second.title} is model {second.card.name}: "
            f"expected two of one of {', '.join(MODELS)}"
        )
    data = load_recipe(name).data(data_directory)
    rows: list[tuple[str, ...]] = [("", first.title, second.title)]
    measured, labels = [], []
    for side in (first, second):
        model = torch.jit.load(io.BytesIO(side.torchscript))
        measured.append(evaluate(model, data.validation))
        labels.append(predict(model, data.validation.x).argmax(dim=1))
    for title, values in {
        "architecture": [side.card.architecture for side in (first, second)],
        "seed": [str(side.card.seed) for side in (first, second)],
        "TorchScript": [f"{len(side.torchscript) / 1000:,.0f} kB" for side in (first, second)],
        "validation accuracy": [f"{metrics.accuracy:.4f}" for metrics in measured],
        "validation log loss": [f"{metrics.log_loss:.4f}" for metrics in measured],
        "test accuracy": [metric_of_test(side.card, "accuracy") for side in (first, second)],
        "test log loss": [metric_of_test(side.card, "log_loss") for side in (first, second)],
    }.items():
        rows.append((title, *values))
    differ = labels[0] != labels[1]
    correct = [int((differ & (label == data.validation.y)).sum()) for label in labels]
    text = (
        f"{columns(rows)}\n"
        f"Labels differ for {int(differ.sum())} of {len(data.validation):,} validation instances: "
        f"the first is correct for {correct[0]} of them, the second for {correct[1]}."
    )
    for side in (first, second):
        if side.card.data_sha256 != data.sha256:
            text += f"\n{side.title} was trained on other data, perhaps on some of these instances."
    return text
