"""An example of what goes wrong in deep networks: vanishing gradients, and dead units.

    python -m training.gradients

trains six small networks on 6,000 digits of MNIST and writes a page that shows them side by side.

Vanishing gradients: a sigmoid multiplies the gradient by its slope, at most 1/4. Eight of them make
it about a thousand times smaller, and the first layer learns nothing. Batch normalisation gives the
gradient its size back in every layer, and ReLU's slope is 1 wherever it is not 0 (Glorot and Bengio
2010, "Understanding the difficulty of training deep feedforward neural networks"; Ioffe and Szegedy
2015, "Batch normalization"). All weights begin as He et al. 2015 draw them, which keeps the
gradient of ReLU layers at its size.

Dead units: a step of a high learning rate can take a unit of ReLU so far that it is 0 for every
digit. Its slope is 0 there, so its own weights stay as they are. Leaky ReLU has a slope there, too
(Maas et al. 2013, "Rectifier nonlinearities improve neural network acoustic models").
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from training.data import MNIST_DIR, Data, Split
from training.errors import TrainingError
from training.export import ServedModel
from training.history import Epoch, History
from training.loop import Fitting, fit, seed_everything
from training.page import Section, Table, render
from training.recording import Recorder
from training.registry import load_recipe
from training.report import dead_unit_chart, gradient_chart
from training.settings import Settings

INSTANCES = 6000
_DEEP = Settings(
    hidden=(64,) * 8,
    initialisation="kaiming",
    optimizer="sgd",
    momentum=0.9,
    learning_rate=0.02,
    batch_size=64,
    epochs=5,
)
GRADIENTS: Mapping[str, Settings] = {
    "sigmoid": replace(_DEEP, activation="sigmoid"),
    "sigmoid, batch normalisation": replace(_DEEP, activation="sigmoid", batch_norm=True),
    "ReLU": replace(_DEEP, activation="relu"),
}
_ADAM = replace(_DEEP, hidden=(64,) * 4, optimizer="adam", momentum=0.0, learning_rate=0.02)
DEAD_UNITS: Mapping[str, Settings] = {
    "ReLU, learning rate 0.001": replace(_ADAM, activation="relu", learning_rate=0.001),
    "ReLU, learning rate 0.02": replace(_ADAM, activation="relu"),
    "leaky ReLU, learning rate 0.02": replace(_ADAM, activation="leaky_relu"),
}


def record(settings: Settings, data: Data) -> History:
    """Train an `mlp` for digits, whatever comes of it."""
    recipe = load_recipe("mnist")
    architecture = recipe.architectures["mlp"]
    seed_everything(settings.seed)
    model = ServedModel(recipe.normalise, architecture.build(settings))
    recorder = Recorder(data.validation)
    fitting = Fitting(model, settings, data.train, augmentation=None)
    fit(fitting, recorder, description=f"mlp, {settings.activation}")
    return recorder.history(model="mnist", architecture="mlp", settings=architecture.used(settings))


def first_to_last(epoch: Epoch) -> float:
    """Gradient norm of the first layer's weights, divided by that of the last layer's."""
    norms = list(epoch.gradient_norms.values())
    return norms[0] / norms[-1]


def dead_share(epoch: Epoch) -> float:
    """Mean share of dead units over the layers."""
    return sum(epoch.dead_units.values()) / len(epoch.dead_units)


def page(gradients: Mapping[str, History], dead_units: Mapping[str, History]) -> str:
    """Both examples side by side.

    Args:
        gradients: trainings by name, for their gradient norms; they share an axis.
        dead_units: trainings by name, for their dead units.
    """
    norms = [
        norm
        for history in gradients.values()
        for epoch in history.epochs
        for norm in epoch.gradient_norms.values()
        if norm > 0
    ]
    limits = (min(norms) / 2, max(norms) * 2)
    vanishing = [
        gradient_chart(history.epochs, limits=limits, title=name)
        for name, history in gradients.items()
    ]
    dead = [dead_unit_chart(history.epochs, title=name) for name, history in dead_units.items()]
    return render(
        "Vanishing gradients and dead units",
        [],
        [
            Section(
                heading="Gradient norm by layer",
                note="Three networks of eight hidden layers that differ in nothing but what "
                "stands between the layers. Of sigmoids alone, the gradient vanishes on its way "
                "from the last layer to the first.",
                charts=[chart for chart in vanishing if chart],
                tables=[
                    _table(
                        gradients,
                        "first layer / last, epoch 1",
                        {k: f"{first_to_last(h.epochs[0]):.2g}" for k, h in gradients.items()},
                    )
                ],
            ),
            Section(
                heading="Dead units by layer",
                note="Three networks of four hidden layers. A dead unit passes no gradient, "
                "whatever the digit, so its own weights stay as they are. A high learning rate "
                "makes many of ReLU and none of leaky ReLU.",
                charts=[chart for chart in dead if chart],
                tables=[
                    _table(
                        dead_units,
                        "dead at the end",
                        {k: f"{dead_share(h.epochs[-1]):.1%}" for k, h in dead_units.items()},
                    )
                ],
            ),
        ],
    )


def _table(histories: Mapping[str, History], title: str, values: Mapping[str, str]) -> Table:
    return Table(
        head=("network", title, "validation accuracy"),
        rows=[
            (name, values[name], f"{history.epochs[-1].validation_accuracy:.1%}")
            for name, history in histories.items()
        ],
    )


def excerpt(data: Data, instances: int) -> Data:
    """The first training instances, and the first thousand of those held out."""
    validation = Split(data.validation.x[:1000], data.validation.y[:1000])
    train = Split(data.train.x[:instances], data.train.y[:instances])
    return Data(train=train, validation=validation, test=validation)


def main(arguments: list[str] | None = None) -> int:
    """Train, write the page, and print where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m training.gradients",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    default = Path("artifacts/training/gradients.html")
    add("--out", type=Path, default=default, metavar="FILE", help="default: %(default)s")
    add("--data-dir", type=Path, metavar="DIR", help="cache of the data (default: .cache/mnist)")
    options = parser.parse_args(arguments)
    try:
        data = excerpt(load_recipe("mnist").data(options.data_dir or MNIST_DIR), INSTANCES)
        gradients, dead_units = (
            {name: record(settings, data) for name, settings in runs.items()}
            for runs in (GRADIENTS, DEAD_UNITS)
        )
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page(gradients, dead_units))
    except (TrainingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
