"""Compares two trained models on the data held out for decisions."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from handler.card import TORCHSCRIPT_FILE, ModelCard
from training import cache
from training.archive import ArchiveError, read_archive
from training.data import Data
from training.evaluation import Evaluation, measure, predict
from training.figures import disagreements
from training.listing import columns, metric_of_test
from training.page import Picture, Section, Table, png, render
from training.recipe import Recipe
from training.registry import MODELS, load_recipe

# Of a terminal of 24 lines, beside the table of metrics.
_PAIRS = 8
_INDICES = 6
_PICTURES = 200


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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models and what they answer on the validation split.

    Attributes:
        sides: the models.
        recipe: of both.
        data: that they were evaluated on.
        probabilities: of each, float32 [n, classes].
        metrics: of each.
        differ: indices of the instances that they answer differently, by both answers.
    """

    sides: tuple[Candidate, Candidate]
    recipe: Recipe
    data: Data
    probabilities: tuple[torch.Tensor, ...]
    metrics: tuple[Evaluation, ...]
    differ: Mapping[tuple[int, int], list[int]]

    @property
    def indices(self) -> list[int]:
        """Of the instances that they answer differently, in order."""
        return sorted(index for indices in self.differ.values() for index in indices)

    def rows(self) -> list[tuple[str, ...]]:
        """A table of what is known of both."""
        sides = self.sides
        values = {
            "architecture": [side.card.architecture for side in sides],
            "seed": [str(side.card.seed) for side in sides],
            "TorchScript": [f"{len(side.torchscript) / 1000:,.0f} kB" for side in sides],
            "validation accuracy": [f"{metrics.accuracy:.4f}" for metrics in self.metrics],
            "validation log loss": [f"{metrics.log_loss:.4f}" for metrics in self.metrics],
            "test accuracy": [metric_of_test(side.card, "accuracy") for side in sides],
            "test log loss": [metric_of_test(side.card, "log_loss") for side in sides],
        }
        return [
            ("", *(side.title for side in sides)),
            *((title, *row) for title, row in values.items()),
        ]

    def verdict(self) -> str:
        """How often the answers differ, and which model is right then."""
        labels = self.data.validation.y
        differ = torch.tensor(self.indices, dtype=torch.int64)
        right = [
            int((probabilities[differ].argmax(dim=1) == labels[differ]).sum())
            for probabilities in self.probabilities
        ]
        return (
            f"Labels differ for {len(differ):,} of {len(labels):,} validation instances: the first "
            f"is correct for {right[0]} of them, the second for {right[1]}."
        )

    def pairs(self) -> list[tuple[str, ...]]:
        """A table of the instances answered differently, by both answers."""
        classes = self.recipe.classes
        return [
            ("FIRST", "SECOND", "COUNT", "INSTANCES"),
            *(
                (classes[first], classes[second], str(len(indices)), _listed(indices))
                for (first, second), indices in self.differ.items()
            ),
        ]


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


def compare(first: Candidate, second: Candidate, data_directory: Path) -> Comparison:
    """Evaluate both models on the validation split.

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
    recipe = load_recipe(name)
    data = recipe.data(data_directory)
    probabilities = tuple(
        predict(torch.jit.load(io.BytesIO(side.torchscript)), data.validation.x)
        for side in (first, second)
    )
    return Comparison(
        sides=(first, second),
        recipe=recipe,
        data=data,
        probabilities=probabilities,
        metrics=tuple(measure(each, data.validation.y) for each in probabilities),
        differ=disagreements(*(each.argmax(dim=1) for each in probabilities)),
    )


def text(comparison: Comparison) -> str:
    """What fits a terminal of 24 lines: metrics of both, and where they differ most."""
    parts = [columns(comparison.rows()), comparison.verdict()]
    head, *pairs = comparison.pairs()
    if pairs:
        parts.append(columns([head, *pairs[:_PAIRS]]))
    if len(pairs) > _PAIRS:
        parts.append(f"and {len(pairs) - _PAIRS} more pairs")
    parts += [
        f"{side.title} was trained on other data, perhaps on some of these instances."
        for side in comparison.sides
        if side.card.data_sha256 != comparison.data.sha256
    ]
    return "\n".join(parts)


def page(comparison: Comparison) -> str:
    """An HTML page with the same, and a picture of every image that is answered differently."""
    head, *rows = comparison.rows()
    pair_head, *pairs = comparison.pairs()
    indices = comparison.indices
    shown = indices[:_PICTURES] if comparison.data.validation.x.dim() == 3 else []
    left_out = f" The first {_PICTURES} are shown." if len(indices) > _PICTURES else ""
    return render(
        f"{comparison.sides[0].title} and {comparison.sides[1].title}",
        [],
        [
            Section(heading="Metrics", tables=[Table(head=head, rows=rows)]),
            Section(
                heading="Answers that differ",
                note=comparison.verdict() + left_out,
                tables=[Table(head=[name.lower() for name in pair_head], rows=pairs)] * bool(pairs),
                pictures=[_picture(comparison, index) for index in shown],
            ),
        ],
    )


def _picture(comparison: Comparison, index: int) -> Picture:
    classes, split = comparison.recipe.classes, comparison.data.validation
    answers = []
    for probabilities in comparison.probabilities:
        confidence, answer = probabilities[index].max(dim=0)
        answers.append(f"{classes[int(answer)]} ({confidence.item():.0%})")
    label = classes[int(split.y[index])]
    return Picture(
        source=png(split.x[index].to(torch.uint8)),
        alt=f"Validation image {index}, labelled {label}",
        caption=f"label {label}\nfirst: {answers[0]}\nsecond: {answers[1]}\nno. {index}",
    )


def _listed(indices: list[int]) -> str:
    more = ", ..." if len(indices) > _INDICES else ""
    return ", ".join(map(str, indices[:_INDICES])) + more
