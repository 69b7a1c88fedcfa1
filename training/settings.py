"""The settings of a training: what each means, what it may be, and its default.

This module is without torch, which takes a second to import: the command line is made of it.
"""

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_type_hints

from training.errors import TrainingError


class SettingError(TrainingError):
    """A setting cannot have a value; the message says what was expected.

    Args:
        name: of the setting.
        reason: without the name.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


@dataclass(frozen=True)
class Kind:
    """What the values of a setting are.

    Attributes:
        expected: in words.
        metavar: in the usage of the command line.
        parse: from the command line's text; raises ValueError.
        accepts: whether a value is one.
    """

    expected: str
    metavar: str
    parse: Callable[[str], Any]
    accepts: Callable[[Any], bool]


def _one_of(*names: str) -> Kind:
    return Kind(f"one of {', '.join(names)}", "NAME", str, lambda value: value in names)


def _number(description: str, is_in_range: Callable[[float], bool]) -> Kind:
    return Kind(
        f"a number {description}",
        "X",
        float,
        lambda value: type(value) is float and math.isfinite(value) and is_in_range(value),
    )


def _whole(least: int) -> Kind:
    return Kind(
        f"a whole number of {least} or more",
        "N",
        int,
        # A bool is an int to isinstance. Torch takes seeds of 64 bits, and attempts add to it.
        lambda value: type(value) is int and least <= value < 1 << 63,
    )


def _widths(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


FLAG = Kind("true or false", "", bool, lambda value: type(value) is bool)
_SHARE = _number("from 0 to under 1", lambda number: 0 <= number < 1)
_WIDTHS = Kind(
    "a list of whole numbers of 1 or more",
    "N,N",
    _widths,
    lambda value: (
        type(value) is tuple and value != () and all(type(n) is int and n >= 1 for n in value)
    ),
)

# Settings of a network, which some networks do not have; all others belong to every training.
OF_NETWORK = frozenset({"hidden", "activation", "dropout", "batch_norm", "initialisation"})
# Where another optimizer than the architecture's is asked for, and no learning rate.
LEARNING_RATES = {"sgd": 0.1, "adam": 3e-3, "adamw": 3e-3, "nadam": 2e-3}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a network is made and trained.

    Attributes:
        hidden: width of each hidden layer, the first layer's first.
        activation: after each hidden layer; `leaky_relu` has slope 0.01 below 0. The output is
            always a softmax.
        dropout: probability with which training drops each output of a hidden layer.
        batch_norm: whether each hidden layer is normalised over the batch before its activation.
        initialisation: of the weights. `torch` is uniform within 1 / sqrt(inputs), biases too;
            `normal` is standard normal, biases too; `xavier` (Glorot and Bengio 2010) and `kaiming`
            (He et al. 2015) are normal, with biases 0.
        loss: of the probabilities and the one-hot label. `cross_entropy` is a mean over instances;
            `bce`, the binary cross-entropy of each class, and `mse`, the squared error, are means
            over instances and classes.
        label_smoothing: share of the one-hot label that is spread evenly over all classes.
        optimizer: what turns gradients into steps.
        momentum: of `sgd`.
        nesterov: whether the momentum of `sgd` is Nesterov's.
        learning_rate: constant, or the highest of the schedule. Another optimizer than the default
            one brings a default of its own.
        schedule: of the learning rate. `one_cycle` rises over the first fifth of all steps and
            falls over the rest (Smith and Topin 2017); `cosine` falls from the first step on.
        weight_decay: times the learning rate, the share of each weight that a step takes away
            (`adamw`); elsewhere the factor of the weights that is added to the gradient.
        epochs: passes over the training split.
        batch_size: instances a step; 0 is the whole training split.
        hard_share: of each batch, what is drawn by how wrong the network was about it lately; the
            rest comes in turn (Loshchilov and Hutter 2015).
        outlier_weight: of the loss that makes a network unsure of what has no label, where the
            architecture has examples (Hendrycks et al. 2019); 0 is without.
        average_decay: of the exponential moving average of the weights over the steps, which is
            kept in place of the last weights; 0 keeps the last.
        precision: of the network's forward while it trains; `bfloat16` is mixed precision, for
            GPUs, with weights and losses in float32.
        seed: of all randomness.

    Raises:
        SettingError: a value has the wrong type or is out of range, or two do not fit.
    """

    hidden: Annotated[tuple[int, ...], _WIDTHS] = (512, 256)
    activation: Annotated[str, _one_of("sigmoid", "tanh", "relu", "leaky_relu")] = "relu"
    dropout: Annotated[float, _SHARE] = 0.0
    batch_norm: Annotated[bool, FLAG] = False
    initialisation: Annotated[str, _one_of("torch", "normal", "xavier", "kaiming")] = "torch"
    loss: Annotated[str, _one_of("cross_entropy", "bce", "mse")] = "cross_entropy"
    label_smoothing: Annotated[float, _SHARE] = 0.0
    optimizer: Annotated[str, _one_of(*LEARNING_RATES)] = "adamw"
    momentum: Annotated[float, _SHARE] = 0.0
    nesterov: Annotated[bool, FLAG] = False
    learning_rate: Annotated[float, _number("over 0", lambda number: number > 0)] = 1e-3
    schedule: Annotated[str, _one_of("constant", "one_cycle", "cosine")] = "constant"
    weight_decay: Annotated[float, _number("of 0 or more", lambda number: number >= 0)] = 0.0
    epochs: Annotated[int, _whole(1)] = 10
    batch_size: Annotated[int, _whole(0)] = 128
    hard_share: Annotated[float, _SHARE] = 0.0
    outlier_weight: Annotated[float, _number("of 0 or more", lambda number: number >= 0)] = 0.0
    average_decay: Annotated[float, _SHARE] = 0.0
    precision: Annotated[str, _one_of("float32", "bfloat16")] = "float32"
    seed: Annotated[int, _whole(0)] = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, checked(field.name, getattr(self, field.name)))
        if self.momentum and self.optimizer != "sgd":
            raise SettingError("momentum", f"optimizer {self.optimizer} has none, only sgd has")
        if self.nesterov and not self.momentum:
            raise SettingError("nesterov", "it needs a momentum over 0")


KINDS: dict[str, Kind] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(Settings, include_extras=True).items()
}


def checked(name: str, value: Any) -> Any:
    """A value of a setting in the setting's type: a list becomes a tuple, 1 becomes 1.0.

    Raises:
        SettingError: the setting cannot have it.
    """
    kind = KINDS[name]
    if type(value) is list:
        value = tuple(value)
    elif type(value) is int and kind.parse is float:
        value = float(value)
    if not kind.accepts(value):
        raise SettingError(name, f"expected {kind.expected}, got {value!r}")
    return value


def parsed(name: str, text: str) -> Any:
    """A value of a setting from a text of the command line.

    Raises:
        SettingError: the setting cannot have it.
    """
    kind = KINDS[name]
    try:
        return checked(name, kind.parse(text))
    except (ValueError, SettingError):
        raise SettingError(name, f"expected {kind.expected}, got {text!r}") from None


def meanings() -> dict[str, str]:
    """What the docstring of `Settings` says of each, on one line."""
    attributes = inspect.getdoc(Settings) or ""
    return {
        name: " ".join(text.split())
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
        if name in KINDS
    }
