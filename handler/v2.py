"""The Open Inference Protocol, version 2, with its binary tensor data extension.

https://github.com/kserve/open-inference-protocol
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
"""

import json
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from handler.card import ModelCard
from handler.errors import PayloadTooLargeError, RequestError
from handler.payload import (
    FLOAT32_MAX,
    MAX_INSTANCES,
    Numbers,
    check_numbers,
    describe,
    parse_json,
)

# The length of the JSON at the beginning of a body, of a request in lower case; the binary data
# of the tensors follows it, little-endian as this machine's numbers are.
JSON_LENGTH = "Inference-Header-Content-Length"
OUTPUTS = ("label", "probabilities")
_TYPECODES = {"UINT8": "B", "FP32": "f"}
_DTYPES = {"UINT8": torch.uint8, "FP32": torch.float32}
_UINT8 = (0, 255)
_FLOAT32 = (-FLOAT32_MAX, FLOAT32_MAX)
# Every answer repeats it, and logs may.
_MAX_ID = 256


@dataclass(frozen=True)
class Options:
    """How a request of the protocol is to be answered.

    Attributes:
        id: to repeat in the answer, or None.
        outputs: names of the tensors to answer, in order, and whether each is to be binary.
    """

    id: str | None = None
    outputs: tuple[tuple[str, bool], ...] = tuple((name, False) for name in OUTPUTS)


class Answer(NamedTuple):
    """The body of an answer; `json_length` is None unless binary data follows the JSON."""

    body: bytes
    json_length: int | None = None


def split(body: bytes | bytearray, length: str) -> tuple[Any, memoryview]:
    """Split a body with binary data into its JSON document and that data.

    Args:
        body: as it arrived.
        length: value of the header `Inference-Header-Content-Length`.

    Raises:
        RequestError: the header is not the length of a JSON document at the body's beginning.
    """
    # `int` also takes signs, underscores and the digits of every script, and long texts slowly.
    size = int(length) if length.isascii() and length.isdigit() and len(length) < 10 else -1
    if not 0 < size <= len(body):
        raise RequestError(
            f"{JSON_LENGTH}: expected a length from 1 to the body's {len(body)} bytes, "
            f"got {length!r:.40}"
        )
    return parse_json(body[:size]), memoryview(body)[size:]


def parse(
    document: Any, card: ModelCard, binary: memoryview | None = None
) -> tuple[Numbers, Options]:
    """Read `{"id"?, "parameters"?, "inputs": [tensor], "outputs"?: [...]}`.

    The tensor has `name`, `shape`, `datatype` and either `data`, a list, or the parameter
    `binary_data_size`. Parameters that are not of the binary extension are ignored.

    Args:
        document: from JSON.
        card: of the model.
        binary: what follows the JSON; None where the request does not say where that ends.

    Returns:
        The numbers of all instances, uint8 or float32, and how to answer.

    Raises:
        RequestError: not such a document, not the model's shape, or a number out of bounds.
        PayloadTooLargeError: over 1,024 instances.
    """
    if not isinstance(document, dict) or "inputs" not in document:
        raise RequestError('expected a JSON object with "inputs"')
    options = Options(_id(document.get("id")), _outputs(document))
    inputs = document["inputs"]
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise RequestError("inputs: expected a list with one tensor")
    return _numbers(inputs[0], card, binary), options


def answer(
    card: ModelCard, options: Options, labels: list[int], probabilities: list[list[float]]
) -> Answer:
    """Serialise an answer: tensors `label`, INT64 [n], and `probabilities`, FP32 [n, classes].

    Raises:
        ValueError: a probability is not finite.
    """
    flat = [number for row in probabilities for number in row]
    if not all(map(math.isfinite, flat)):
        raise ValueError("a probability is not finite")
    document: dict[str, Any] = {"model_name": card.name, "model_version": card.version}
    if options.id is not None:
        document["id"] = options.id
    outputs = document["outputs"] = []
    binary = []
    for name, is_binary in options.outputs:
        tensor: dict[str, Any] = (
            {"name": name, "shape": [len(labels)], "datatype": "INT64"}
            if name == "label"
            else {"name": name, "shape": [len(labels), len(card.classes)], "datatype": "FP32"}
        )
        data = labels if name == "label" else flat
        if is_binary:
            content = array("q" if name == "label" else "f", data).tobytes()
            tensor["parameters"] = {"binary_data_size": len(content)}
            binary.append(content)
        else:
            tensor["data"] = data
        outputs.append(tensor)
    body = json.dumps(document).encode()
    return Answer(b"".join([body, *binary]), len(body)) if binary else Answer(body)


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


def _id(id_: Any) -> str | None:
    if id_ is not None and not isinstance(id_, str):
        raise RequestError(f"id: expected a string, got {describe(id_)}")
    if id_ is not None and len(id_) > _MAX_ID:
        raise RequestError(f"id: expected at most {_MAX_ID} characters, got {len(id_)}")
    return id_


def _parameters(object_: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    parameters = object_.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise RequestError(f"{where}parameters: expected an object, got {describe(parameters)}")
    return parameters


def _flag(parameters: dict[str, Any], name: str, default: bool, where: str = "") -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(
            f"{where}parameters.{name}: expected true or false, got {describe(value)}"
        )
    return value


def _outputs(document: Mapping[str, Any]) -> tuple[tuple[str, bool], ...]:
    """Names of the outputs asked for, all by default, and whether each is to be binary."""
    default = _flag(_parameters(document), "binary_data_output", False)
    outputs = document.get("outputs")
    if outputs is None or outputs == []:
        return tuple((name, default) for name in OUTPUTS)
    if not isinstance(outputs, list):
        raise RequestError(f"outputs: expected a list, got {describe(outputs)}")
    chosen: dict[str, bool] = {}
    for index, output in enumerate(outputs):
        where = f"outputs[{index}]"
        if not isinstance(output, dict):
            raise RequestError(f"{where}: expected an object, got {describe(output)}")
        name = output.get("name")
        if name not in OUTPUTS:
            got = f"{name!r:.40}" if isinstance(name, str) else describe(name)
            raise RequestError(f"{where}.name: expected {' or '.join(OUTPUTS)}, got {got}")
        if name in chosen:
            raise RequestError(f"{where}.name: {name} stands in outputs twice")
        chosen[name] = _flag(_parameters(output, f"{where}."), "binary_data", default, f"{where}.")
    return tuple(chosen.items())


def _shape(shape: Any, instance: tuple[int, ...]) -> list[int]:
    is_shape = isinstance(shape, list) and all(type(length) is int for length in shape)
    fits = is_shape and shape[1:] == list(instance) and len(shape) > len(instance) and shape[0] > 0
    if fits and shape[0] <= MAX_INSTANCES:
        lengths: list[int] = shape
        return lengths
    expected = ", ".join([f"1 to {MAX_INSTANCES}", *map(str, instance)])
    error = PayloadTooLargeError if fits else RequestError
    raise error(f"inputs[0].shape: expected [{expected}], got {json.dumps(shape):.80}")


def _numbers(tensor: dict[str, Any], card: ModelCard, binary: memoryview | None) -> Numbers:
    """The numbers of the one input."""
    if not isinstance(tensor.get("name"), str):
        raise RequestError(f"inputs[0].name: expected a string, got {describe(tensor.get('name'))}")
    shape = _shape(tensor.get("shape"), card.input_shape)
    datatype = tensor.get("datatype")
    if not isinstance(datatype, str) or datatype not in _TYPECODES:
        raise RequestError(f"inputs[0].datatype: expected UINT8 or FP32, got {datatype!r:.40}")
    bounds = card.input_bounds
    if datatype == "UINT8":
        low, high = bounds or _UINT8
        bounds = (max(low, _UINT8[0]), min(high, _UINT8[1]))
    parameters = _parameters(tensor, "inputs[0].")
    if "binary_data_size" in parameters:
        if "data" in tensor:
            raise RequestError("inputs[0]: expected data or binary_data_size, got both")
        return _from_binary(binary, parameters["binary_data_size"], datatype, shape, bounds)
    if binary:
        raise RequestError(
            f"{len(binary)} bytes follow the JSON, but no tensor has a binary_data_size"
        )
    return _from_json(tensor.get("data"), datatype, shape, bounds)


def _from_binary(
    binary: memoryview | None,
    size: Any,
    datatype: str,
    shape: list[int],
    bounds: tuple[float, float] | None,
) -> Numbers:
    where = "inputs[0].parameters.binary_data_size"
    if binary is None:
        raise RequestError(f"{where}: the request has no header {JSON_LENGTH}")
    numbers: Numbers = array(_TYPECODES[datatype])
    expected = math.prod(shape) * numbers.itemsize
    if type(size) is not int or size != expected:
        got = str(size)[:20] if type(size) is int else describe(size)
        raise RequestError(
            f"{where}: expected {expected} for {datatype} of shape {shape}, got {got}"
        )
    if len(binary) != size:
        raise RequestError(f"{where} is {size}, but {len(binary)} bytes follow the JSON")
    # One copy, because the JSON may end anywhere: float32 in place would not be aligned.
    numbers.frombytes(binary)
    low, high = bounds or _FLOAT32
    if datatype == "UINT8" and low <= _UINT8[0] and high >= _UINT8[1]:
        return numbers
    tensor = torch.frombuffer(numbers, dtype=_DTYPES[datatype])
    # Both are NaN if any number is, and NaN is in no range.
    least, largest = map(float, tensor.aminmax())
    if not (low <= least and largest <= high):
        for index in (~((tensor >= low) & (tensor <= high))).nonzero()[:1].flatten().tolist():
            kind = f"a number from {low:g} to {high:g}" if bounds else "a finite number"
            raise RequestError(f"inputs[0][{index}]: expected {kind}, got {numbers[index]:g}")
    return numbers


def _from_json(
    data: Any, datatype: str, shape: list[int], bounds: tuple[float, float] | None
) -> Numbers:
    flat = _flat(data, len(shape))
    if len(flat) != math.prod(shape):
        raise RequestError(
            f"inputs[0].data: expected {math.prod(shape)} numbers for shape {shape}, "
            f"got {len(flat)}"
        )
    types = (int,) if datatype == "UINT8" else (int, float)
    check_numbers(flat, bounds, "inputs[0].data", types)
    return array(_TYPECODES[datatype], flat)


def _flat(data: Any, depth: int) -> list[Any]:
    """Flatten, in row-major order, a list that is flat or nested as deep as the shape is long."""
    if not isinstance(data, list):
        raise RequestError(f"inputs[0].data: expected a list, got {describe(data)}")
    flat: list[Any] = data
    for _ in range(depth - 1):
        if any(isinstance(item, list) for item in flat):
            flat = [part for item in flat for part in (item if isinstance(item, list) else [item])]
    return flat
