"""Metadata of the server and its models, as the Open Inference Protocol defines it.

HTTP and gRPC both answer with it. https://github.com/kserve/open-inference-protocol
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from handler.card import ModelCard
from server import __version__
from server.store import Archive
from server.watcher import ModelState

SERVER: dict[str, Any] = {
    "name": "model-server",
    "version": __version__,
    "extensions": ["binary_tensor_data"],
}
# The protocol's list has no name for archives whose content only their handler knows.
_TORCHSCRIPT, _UNKNOWN = "pytorch_torchscript", "torchserve_mar"


class UnknownModelError(LookupError):
    """There is no such model or version; the message names those that exist.

    Attributes:
        kind: exception type in the body of an error.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model.

    Attributes:
        name: in requests and answers.
        datatype: of its elements, by the protocol's name.
        shape: -1 for the number of instances.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


def find_model(models: Sequence[ModelState], name: str, version: str = "") -> ModelState:
    """Look a model up.

    Args:
        models: in the order of the archives, the highest version of each model first.
        name: the model's.
        version: the model's; empty for the one that answers requests that name none.

    Raises:
        UnknownModelError: there is none. Its message is the front door's for the same mistake.
    """
    versions = {state.archive.version: state for state in models if state.archive.name == name}
    if not versions:
        names = ", ".join(dict.fromkeys(state.archive.name for state in models))
        raise UnknownModelError(
            "ModelNotFoundException", f"there is no model {name:.200}; there are: {names}"
        )
    state = versions.get(version) if version else next(iter(versions.values()))
    if state is None:
        raise UnknownModelError(
            "ModelVersionNotFoundException",
            f"model {name} has no version {version:.200}; there are: {', '.join(versions)}",
        )
    return state


def model_metadata(archive: Archive, versions: Sequence[str]) -> dict[str, Any]:
    """The protocol's metadata of one version of a model.

    Args:
        archive: the version.
        versions: all that there are of this model.

    Returns:
        Without inputs and outputs if the archive has no card: only its handler knows them.
    """
    card = archive.card
    return {
        "name": archive.name,
        "versions": list(versions),
        "platform": _TORCHSCRIPT if card else _UNKNOWN,
        "inputs": [asdict(tensor) for tensor in inputs(card)] if card else [],
        "outputs": [asdict(tensor) for tensor in outputs(card)] if card else [],
    }


def versions_of(models: Sequence[ModelState], name: str) -> list[str]:
    """The versions of a model, the highest first."""
    return [state.archive.version for state in models if state.archive.name == name]


def inputs(card: ModelCard) -> list[Tensor]:
    """The one input. Every model takes `UINT8` and `FP32`; this is the one that it was made for."""
    is_bytes = card.input_bounds == (0, 255)
    return [Tensor("input", "UINT8" if is_bytes else "FP32", (-1, *card.input_shape))]


def outputs(card: ModelCard) -> list[Tensor]:
    """What `handler.v2` answers with."""
    return [
        Tensor("label", "INT64", (-1,)),
        Tensor("probabilities", "FP32", (-1, len(card.classes))),
    ]
