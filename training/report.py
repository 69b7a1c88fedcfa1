"""The report of a training: a page that a person looks at, and its figures as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from markupsafe import Markup

from training import plots
from training.calibration import expected_calibration_error
from training.corruptions import DATA_SET_SEVERITY, SIDE
from training.data import Data, Split
from training.evaluation import predict
from training.export import ServedModel
from training.figures import (
    Bin,
    Mistake,
    accuracy_by_corruption,
    confusion,
    reliability,
    worst_mistakes,
)
from training.history import SURFACE_HIGH, SURFACE_LOW, Epoch, History, Surface
from training.page import Picture, Section, Table, png, render
from training.recipe import Recipe

PAGE, METRICS = "report.html", "metrics.json"

_MISTAKES = 24
_CORRUPTED = 500
# Fewer instances say nothing of a share by confidence.
_LEAST_FOR_RELIABILITY = 100
_MOST_MARKS = 16


def write(  # noqa: PLR0913, PLR0917 (all that a report is of)
    directory: Path,
    history: History,
    model: ServedModel,
    data: Data,
    recipe: Recipe,
    evaluation: dict[str, Any],
) -> Path:
    """Write `report.html` and `metrics.json`; what a model has no use for is in neither.

    Every figure but those in `evaluation` is of the validation split.

    Args:
        directory: where to; it exists.
        history: of the training.
        model: calibrated, on the CPU, in evaluation mode.
        data: that it was trained on.
        recipe: of the model.
        evaluation: metrics by split, `validation` and `test`, and `calibration`.

    Returns:
        The page.
    """
    metrics = _metrics(model, data, recipe, evaluation) | {"history": json.loads(history.to_json())}
    (directory / METRICS).write_text(json.dumps(metrics, indent=1) + "\n")
    page = directory / PAGE
    page.write_text(_page(history, data, recipe, metrics))
    return page


def _metrics(
    model: ServedModel, data: Data, recipe: Recipe, evaluation: dict[str, Any]
) -> dict[str, Any]:
    """All figures of the report but the history, as JSON has them."""
    split = data.validation
    logits = predict(model.logits, split.x)
    sides = {
        "before": logits.softmax(dim=1),
        "after": (logits / model.temperature).softmax(dim=1),
    }
    after, labels = sides["after"], split.y
    metrics: dict[str, Any] = {
        "evaluation": evaluation,
        "classes": list(recipe.classes),
        "confusion": confusion(labels, after.argmax(dim=1), len(recipe.classes)).tolist(),
        "worst_mistakes": [asdict(each) for each in worst_mistakes(after, labels, _MISTAKES)],
    }
    if len(split) >= _LEAST_FOR_RELIABILITY:
        metrics["reliability"] = {
            side: {
                "expected_calibration_error": expected_calibration_error(probabilities, labels),
                "bins": [asdict(each) for each in reliability(probabilities, labels)],
            }
            for side, probabilities in sides.items()
            if side == "after" or model.temperature != 1
        }
    if recipe.input_shape == (SIDE, SIDE):
        excerpt = Split(split.x[:_CORRUPTED], labels[:_CORRUPTED])
        metrics["corruptions"] = accuracy_by_corruption(model, excerpt)
    return metrics


def _page(history: History, data: Data, recipe: Recipe, metrics: dict[str, Any]) -> str:
    classes = recipe.classes
    mistakes = [Mistake(**each) for each in metrics["worst_mistakes"]]
    sections = [
        Section(heading="Settings", facts=_settings(history)),
        Section(
            heading="Learning",
            note="In training, augmentation, dropout and label smoothing raise the loss, and may "
            "raise it over that of validation.",
            charts=_learning(history.epochs),
        ),
        Section(
            heading="Gradients and dead units, by layer",
            note="The norm of the loss's gradient by each layer's weights, the mean of an epoch: "
            "where it shrinks from the last layer to the first by orders of magnitude, the first "
            "layers do not learn. And the share of each activation's units that pass no gradient, "
            "whatever the instance.",
            charts=_layers(history.epochs),
        ),
        Section(
            heading="Decision surface over time",
            note=f"Probability of {classes[-1]} by the two inputs, from {SURFACE_LOW:g} to "
            f"{SURFACE_HIGH:g} each, the first from left to right, the second upwards. Blue is 0, "
            f"white is a half, orange is 1. Filled dots are labelled {classes[-1]}.",
            pictures=[_surface(each, data.train) for each in history.surfaces],
            is_smooth=True,
        ),
        Section(
            heading="Confusion matrix",
            note=f"Counts of {len(data.validation):,} validation instances. Rows are labels, "
            "columns answers.",
            tables=[confusion_table(metrics["confusion"], classes)],
        ),
        Section(
            heading="Accuracy by corruption",
            note=f"Percent of {min(_CORRUPTED, len(data.validation)):,} validation images that are "
            "corrupted in MNIST-C's 15 ways, at its own strength and from weak, 1, to strong, 5.",
            tables=[corruption_table(each) for each in (metrics.get("corruptions"),) if each],
        ),
        Section(
            heading="Worst mistakes",
            note="The validation images whose label got the least probability, the worst first.",
            pictures=_mistakes(mistakes, data.validation, classes),
        ),
        Section(
            heading="Reliability",
            note="Accuracy by confidence, in 15 bins. Over the dashed line, the model is right "
            "more often than it says; under it, less often. The temperature was fitted to these "
            "same instances.",
            charts=_reliability(metrics),
        ),
    ]
    return render(
        f"Training of {history.model}, {history.architecture}, seed {history.seed}",
        _summary(history, metrics),
        sections,
    )


def _summary(history: History, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    evaluation = metrics["evaluation"]
    found = [
        (f"{split} {title}", number)
        for split in ("validation", "test")
        for name, title, form in (
            ("accuracy", "accuracy", "{:.2%}"),
            ("log_loss", "log loss", "{:.4f}"),
        )
        if (number := _formatted(evaluation.get(split, {}).get(name), form))
    ]
    error = metrics.get("reliability", {}).get("after", {}).get("expected_calibration_error")
    temperature = evaluation.get("calibration", {}).get("temperature")
    epochs = history.epochs[-1].number
    # Of a long training, not every epoch was recorded.
    seconds = sum(e.seconds for e in history.epochs) if len(history.epochs) == epochs else None
    found += [
        ("calibration error", _formatted(error, "{:.2%}")),
        ("temperature", _formatted(temperature, "{:.3f}")),
        ("epochs", f"{epochs:,}"),
        ("time", _formatted(seconds, "{:,.1f} s")),
    ]
    return [(name, value) for name, value in found if value]


def _formatted(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _settings(history: History) -> list[tuple[str, str]]:
    return [
        (
            name.replace("_", " "),
            ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value),
        )
        for name, value in history.settings.items()
    ]


def _learning(epochs: Sequence[Epoch]) -> list[Markup]:
    numbers = [epoch.number for epoch in epochs]
    charts = [
        plots.lines(
            "Loss by epoch, in training and on validation instances",
            numbers,
            {
                "training": [epoch.train_loss for epoch in epochs],
                "validation": [epoch.validation_loss for epoch in epochs],
            },
            ylabel="loss",
            is_log=True,
        ),
        plots.lines(
            "Accuracy by epoch, in training and on validation instances",
            numbers,
            {
                "training": [epoch.train_accuracy for epoch in epochs],
                "validation": [epoch.validation_accuracy for epoch in epochs],
            },
            ylabel="accuracy",
            is_share=True,
        ),
        plots.lines(
            "Learning rate by epoch",
            numbers,
            {"learning rate": [epoch.learning_rate for epoch in epochs]},
            ylabel="learning rate",
        ),
    ]
    return [chart for chart in charts if chart]


def _layers(epochs: Sequence[Epoch]) -> list[Markup]:
    charts = [gradient_chart(epochs), dead_unit_chart(epochs)]
    return [chart for chart in charts if chart]


def gradient_chart(
    epochs: Sequence[Epoch], *, limits: tuple[float, float] | None = None, title: str = ""
) -> Markup | None:
    """Gradient norms by layer over the epochs, an `<svg>` element, or None without any.

    Args:
        epochs: in order.
        limits: of the vertical axis, to compare charts.
        title: above the chart.
    """
    return plots.lines(
        f"Gradient norm of each layer by epoch{title and ', '}{title}",
        [epoch.number for epoch in epochs],
        by_layer([epoch.gradient_norms for epoch in epochs]),
        ylabel="gradient norm",
        is_log=True,
        by_depth=True,
        limits=limits,
        title=title,
    )


def dead_unit_chart(epochs: Sequence[Epoch], *, title: str = "") -> Markup | None:
    """Share of dead units by layer over the epochs, an `<svg>` element, or None without any.

    Args:
        epochs: in order.
        title: above the chart.
    """
    return plots.lines(
        f"Share of dead units of each layer by epoch{title and ', '}{title}",
        [epoch.number for epoch in epochs],
        by_layer([epoch.dead_units for epoch in epochs]),
        ylabel="dead units",
        is_share=True,
        by_depth=True,
        limits=(-0.03, 1.03),
        title=title,
    )


def by_layer(epochs: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """A value for each epoch by layer, NaN where an epoch does not have the layer."""
    names = dict.fromkeys(name for epoch in epochs for name in epoch)
    return {name: [epoch.get(name, math.nan) for epoch in epochs] for name in names}


def confusion_table(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Table:
    """Counts by label and answer; mistakes are shaded by how many of their label they are."""
    return Table(
        head=("", *classes),
        rows=[
            (name, *(f"{count:,}" if count else "" for count in row))
            for name, row in zip(classes, counts, strict=True)
        ],
        # One in twenty is as dark as it gets: the diagonal would hide what is beside it.
        shades=[
            [0 if i == j else min(1.0, 20 * c / max(sum(row), 1)) for j, c in enumerate(row)]
            for i, row in enumerate(counts)
        ],
    )


def _mistakes(
    mistakes: Sequence[Mistake], split: Split, classes: Sequence[str]
) -> Sequence[Picture]:
    """A picture of each mistake, if the instances are images."""
    if split.x.dim() != 3:
        return ()
    return [
        Picture(
            source=png(split.x[each.index].to(torch.uint8)),
            alt=f"Validation image {each.index}, labelled {classes[each.label]}",
            caption=f"{classes[each.label]}, answered {classes[each.answer]} "
            f"({each.confidence:.0%})\nno. {each.index}",
        )
        for each in mistakes
    ]


def _reliability(metrics: dict[str, Any]) -> list[Markup]:
    titles = {"before": "before calibration", "after": "after calibration"}
    sides = metrics.get("reliability", {})
    charts = []
    for side, figures in sides.items():
        error = f"calibration error {figures['expected_calibration_error']:.2%}"
        title = f"{titles[side]}: {error}" if len(sides) > 1 else f"without a temperature: {error}"
        bins = [Bin(**each) for each in figures["bins"]]
        charts.append(plots.reliability(f"Accuracy by confidence {title}", bins, title))
    return charts


def _surface(surface: Surface, train: Split) -> Picture:
    """The square in colours, with the training instances, if they are few."""
    shares = torch.tensor(surface.probabilities).flip(0)  # the second input grows upwards
    low, middle, high = (
        torch.tensor(colour) for colour in ((47.0, 127, 209), (255.0, 255, 255), (217.0, 105, 11))
    )
    part = (2 * shares - 1).unsqueeze(2)
    colours = middle + part.clamp_min(0) * (high - middle) - part.clamp_max(0) * (low - middle)
    span = SURFACE_HIGH - SURFACE_LOW
    marks = [
        ((x - SURFACE_LOW) / span, (SURFACE_HIGH - y) / span, label == 1)
        for (x, y), label in zip(train.x.tolist(), train.y.tolist(), strict=True)
    ]
    when = f"after epoch {surface.epoch:,}" if surface.epoch else "before training"
    return Picture(
        source=png(colours.round().to(torch.uint8)),
        alt=f"What the model answers over the plane {when}",
        caption=when,
        marks=marks if len(marks) <= _MOST_MARKS else (),
    )


def corruption_table(accuracies: Mapping[str, Sequence[float]]) -> Table:
    """Accuracy by kind of corruption, at MNIST-C's strength and others; dark is bad.

    Args:
        accuracies: as `training.figures.accuracy_by_corruption` returns them.
    """
    rows = {
        kind.replace("_", " "): [values[DATA_SET_SEVERITY.get(kind, 1) - 1], *values]
        if len(values) > 1
        else values
        for kind, values in accuracies.items()
    }
    width = max(map(len, rows.values()))
    columns = zip_longest(*rows.values())
    rows["mean"] = [fmean(value for value in column if value is not None) for column in columns]
    filler = [math.nan] * width
    filled = {kind: [*values, *filler][:width] for kind, values in rows.items()}
    return Table(
        head=("", "MNIST-C", *map(str, range(1, width))),
        rows=[
            (kind, *("" if math.isnan(value) else f"{100 * value:.1f}" for value in values))
            for kind, values in filled.items()
        ],
        shades=[
            [0 if math.isnan(value) else min(1.0, 2 * (1 - value)) for value in values]
            for values in filled.values()
        ],
    )
