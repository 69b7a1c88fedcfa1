"""What a training was like, epoch by epoch: the numbers that its report draws.

Plain numbers without torch, so that whoever reads a history need not load it.
"""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

# Of a surface: points on each side of the square from `SURFACE_LOW` to `SURFACE_HIGH`.
SURFACE_POINTS = 33
SURFACE_LOW, SURFACE_HIGH = -0.5, 1.5


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the training split, as far as it was recorded.

    A number that the training did not reach, such as the loss of one that diverged, is NaN.

    Attributes:
        number: from 1.
        learning_rate: at its end.
        train_loss: mean over its batches, with augmentation, dropout and label smoothing.
        train_accuracy: likewise.
        validation_loss: mean negative logarithm (base e) of the label's probability, of the weights
            that would be served if training ended here: the averaged ones where there are any.
        validation_accuracy: likewise.
        gradient_norms: L2 norm of the gradient of each layer's weights by the layer's name, in the
            order of the layers; mean over the epoch's recorded steps.
        dead_units: share of the units of each activation by its name, in the order of the layers,
            whose derivative is (nearly) 0 for every validation instance looked at.
        seconds: of training and recording.
    """

    number: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    gradient_norms: dict[str, float]
    dead_units: dict[str, float]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Surface:
    """What a model of two inputs answers over the square around the unit square.

    Attributes:
        epoch: after which it was recorded; 0 is before the first.
        probabilities: of the last class, [33][33]: row i has the second input at
            -0.5 + i / 16, column j the first input at -0.5 + j / 16.
    """

    epoch: int
    probabilities: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class History:
    """A training from its first epoch to its last.

    Attributes:
        model: its name.
        architecture: its name.
        settings: of the recipe and the network, by name.
        seed: that the weights come from.
        epochs: those recorded, in order; all of them, or 100 spread evenly over a long training.
        surfaces: at about nine moments, of a model with two inputs; else none.
    """

    model: str
    architecture: str
    settings: dict[str, Any]
    seed: int
    epochs: tuple[Epoch, ...]
    surfaces: tuple[Surface, ...] = ()

    def to_json(self) -> str:
        """Serialise; a number that is not finite becomes null, as JSON has none."""
        return json.dumps(_without_nan(asdict(self)), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "History":
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is not JSON, or not of a history.
        """
        try:
            values = json.loads(text)
            epochs = tuple(Epoch(**_with_nan(epoch)) for epoch in values.pop("epochs"))
            surfaces = tuple(
                Surface(
                    epoch=surface["epoch"],
                    probabilities=tuple(tuple(row) for row in surface["probabilities"]),
                )
                for surface in values.pop("surfaces")
            )
            return cls(epochs=epochs, surfaces=surfaces, **values)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a history: {error}") from None


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(epoch: dict[str, Any]) -> dict[str, Any]:
    """Numbers of an epoch, in which every null stands for one that is not finite."""
    return {
        key: _with_nan(value) if isinstance(value, dict) else math.nan if value is None else value
        for key, value in epoch.items()
    }
