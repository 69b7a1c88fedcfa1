"""What a model module defines; everything else is the pipeline's."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.data import Data
from training.settings import OF_NETWORK, Settings


@dataclass(frozen=True)
class Augmentation:
    """What a training batch becomes.

    Attributes:
        change: from instances as in the data, and a generator, to instances of the same shape. It
            may change the last of a batch more than the first.
        mild_share: of a batch, what is changed so little that the loss says how hard it is.
        outliers: from instances, their labels and a generator to what the network is to be unsure
            of, or None.
    """

    change: Callable[[torch.Tensor, torch.Generator], torch.Tensor]
    mild_share: float = 1.0
    outliers: Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network, how it is trained by default, and the thresholds that it must reach.

    Attributes:
        build: makes the network, its weights drawn from torch's global generator. The network maps
            normalised float32 [n, ...] to logits [n, classes].
        min_accuracy: on the validation split; a model below it is discarded.
        min_confidence: smallest probability of any validation label, likewise.
        settings: the defaults.
        uses: those of `training.settings.OF_NETWORK` that `build` heeds.
        augmentation: of each training batch, or None.
    """

    build: Callable[[Settings], nn.Module]
    min_accuracy: float
    min_confidence: float = 0.0
    settings: Settings = field(default_factory=Settings)
    uses: frozenset[str] = frozenset()
    augmentation: Augmentation | None = None

    def used(self, settings: Settings) -> dict[str, Any]:
        """The settings that decide the weights, by name: all but those of other networks."""
        unused = OF_NETWORK - self.uses
        return {name: value for name, value in asdict(settings).items() if name not in unused}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained and served.

    Attributes:
        name: of the model, its archive and its handler module, `handler/{name}.py`.
        classes: a name for each label.
        input_shape: of one instance.
        input_bounds: smallest and largest number that a request may have, or None for every finite
            one.
        architectures: by name, the default first.
        quick: the one that a first start trains, if the default takes too long for that.
        data: loads the data set, given the cache directory.
        normalise: from instances, float32 [n, *input_shape], to the network's input.
        normalisation: description of `normalise`, for the model card.
        attempts: how many seeds may be tried until one passes the gate.
        max_batch_size: requests that a worker takes at once.
        max_batch_delay: milliseconds that a request waits for others.
        usage: commands that show a request, with URL for that of the model.
    """

    name: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    architectures: Mapping[str, Architecture]
    quick: str = ""
    data: Callable[[Path], Data]
    input_bounds: tuple[float, float] | None = None
    normalise: nn.Module = field(default_factory=nn.Identity)
    normalisation: str = "none"
    attempts: int = 1
    max_batch_size: int = 64
    max_batch_delay: int = 1
    usage: tuple[str, ...] = ()

    @property
    def default(self) -> str:
        """The architecture that is trained where none is asked for."""
        return next(iter(self.architectures))
