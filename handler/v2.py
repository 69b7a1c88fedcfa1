"""The Open Inference Protocol, version 2: tensors as flat lists with a shape.

https://github.com/kserve/open-inference-protocol
"""

import json
import math
from array import array
from typing import Any

from handler.card import ModelCard
from handler.errors import PayloadTooLargeError, RequestError
from handler.payload import MAX_INSTANCES, Numbers, check_numbers, describe

_TYPECODES = {"UINT8": "B", "FP32": "f"}
_UINT8 = (0, 255)


def parse(document: dict[str, Any], card: ModelCard) -> tuple[Numbers, str | None]:
    """Read `{"id"?, "inputs": [{"name", "shape", "datatype", "data"}]}`.

    Returns:
        The numbers of all instances, uint8 or float32, and the id to repeat in the answer.

    Raises:
        RequestError: not such a document, not the model's shape, or a number out of bounds.
        PayloadTooLargeError: over 1,024 instances.
    """
    id_ = document.get("id")
    if id_ is not None and not isinstance(id_, str):
        raise RequestError(f"id: expected a string, got {describe(id_)}")
    inputs = document["inputs"]
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise RequestError("inputs: expected a list with one tensor")
    (tensor,) = inputs
    shape = _shape(tensor.get("shape"), card.input_shape)
    datatype = tensor.get("datatype")
    if not isinstance(datatype, str) or datatype not in _TYPECODES:
        raise RequestError(f"inputs[0].datatype: expected UINT8 or FP32, got {datatype!r:.40}")
    data = _flat(tensor.get("data"), len(shape))
    if len(data) != math.prod(shape):
        raise RequestError(
            f"inputs[0].data: expected {math.prod(shape)} numbers for shape {shape}, "
            f"got {len(data)}"
        )
    if datatype == "UINT8":
        low, high = card.input_bounds or _UINT8
        bounds = (max(low, _UINT8[0]), min(high, _UINT8[1]))
        check_numbers(data, bounds, "inputs[0].data", (int,))
    else:
        check_numbers(data, card.input_bounds, "inputs[0].data")
    return array(_TYPECODES[datatype], data), id_


def answer(
    card: ModelCard, id_: str | None, labels: list[int], probabilities: list[list[float]]
) -> bytes:
    """Serialise an answer: tensors `label`, INT64 [n], and `probabilities`, FP32 [n, classes].

    Raises:
        ValueError: a probability is not finite.
    """
    document: dict[str, Any] = {"model_name": card.name, "model_version": card.version}
    if id_ is not None:
        document["id"] = id_
    document["outputs"] = [
        {"name": "label", "shape": [len(labels)], "datatype": "INT64", "data": labels},
        {
            "name": "probabilities",
            "shape": [len(labels), len(card.classes)],
            "datatype": "FP32",
            "data": [number for row in probabilities for number in row],
        },
    ]
    return json.dumps(document, allow_nan=False).encode()


def error(card: ModelCard, text: str) -> dict[str, Any]:
    """Fields that an error needs besides its own where gRPC may read it as an answer.

    TorchServe's frontend reads them in every answer to a ModelInfer call; without them it fails,
    and takes the worker down. The protocol's gRPC message has no field for an error, and TorchServe
    cannot set a gRPC status for one request of a batch, so the error is an output.
    """
    output = {"name": "error", "shape": [1], "datatype": "BYTES", "data": [text]}
    return {
        "id": "",
        "model_name": card.name,
        "model_version": card.version,
        "outputs": [output],
    }


def _shape(shape: Any, instance: tuple[int, ...]) -> list[int]:
    is_shape = isinstance(shape, list) and all(type(length) is int for length in shape)
    fits = is_shape and shape[1:] == list(instance) and len(shape) > len(instance) and shape[0] > 0
    if fits and shape[0] <= MAX_INSTANCES:
        lengths: list[int] = shape
        return lengths
    expected = ", ".join([f"1 to {MAX_INSTANCES}", *map(str, instance)])
    error = PayloadTooLargeError if fits else RequestError
    raise error(f"inputs[0].shape: expected [{expected}], got {json.dumps(shape):.80}")


def _flat(data: Any, depth: int) -> list[Any]:
    """Flatten, in row-major order, a list that is flat or nested as deep as the shape is long."""
    if not isinstance(data, list):
        raise RequestError(f"inputs[0].data: expected a list, got {describe(data)}")
    flat: list[Any] = data
    for _ in range(depth - 1):
        if any(isinstance(item, list) for item in flat):
            flat = [part for item in flat for part in (item if isinstance(item, list) else [item])]
    return flat
