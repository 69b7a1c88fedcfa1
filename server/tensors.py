"""Tensors of the Open Inference Protocol's gRPC messages, to and from its HTTP form.

Raw contents become the binary tensor data that may follow the JSON, and others its lists.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from server.protocol.inference_pb2 import (
    InferParameter,
    InferTensorContents,
    ModelInferRequest,
    ModelInferResponse,
)

_LENGTH = struct.Struct("<I")


class TensorError(ValueError):
    """A message is not of the protocol; the text says where."""


class Body(NamedTuple):
    """The body of a request or an answer; `json_length` is None unless binary data follows."""

    content: bytes
    json_length: int | None = None


class _Numeric(NamedTuple):
    dtype: str
    contents: str  # empty if there is no field for it


_NUMERIC = {
    "BOOL": _Numeric("?", "bool_contents"),
    "INT8": _Numeric("<i1", "int_contents"),
    "INT16": _Numeric("<i2", "int_contents"),
    "INT32": _Numeric("<i4", "int_contents"),
    "INT64": _Numeric("<i8", "int64_contents"),
    "UINT8": _Numeric("<u1", "uint_contents"),
    "UINT16": _Numeric("<u2", "uint_contents"),
    "UINT32": _Numeric("<u4", "uint_contents"),
    "UINT64": _Numeric("<u8", "uint64_contents"),
    "FP16": _Numeric("<f2", ""),
    "FP32": _Numeric("<f4", "fp32_contents"),
    "FP64": _Numeric("<f8", "fp64_contents"),
}


def request_body(request: ModelInferRequest) -> Body:
    """The request over HTTP. With raw contents it asks for an answer in binary, too.

    Raises:
        TensorError: raw contents beside others, or not one for each input; contents that JSON
            cannot hold.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise TensorError(
            f"raw_input_contents: expected one for each of {len(request.inputs)} inputs, "
            f"got {len(raw)}"
        )
    document: dict[str, Any] = {"parameters": _from_parameters(request.parameters), "inputs": []}
    if raw:
        document["parameters"]["binary_data_output"] = True
    if request.id:
        document["id"] = request.id
    if request.outputs:
        document["outputs"] = [
            {"name": output.name, "parameters": _from_parameters(output.parameters)}
            for output in request.outputs
        ]
    for index, tensor in enumerate(request.inputs):
        given = {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "datatype": tensor.datatype,
            "parameters": _from_parameters(tensor.parameters),
        }
        if not raw:
            given["data"] = _from_contents(tensor.contents, tensor.datatype, f"inputs[{index}]")
        elif tensor.HasField("contents"):
            raise TensorError(f"inputs[{index}]: has contents beside raw_input_contents")
        else:
            given["parameters"]["binary_data_size"] = len(raw[index])
        document["inputs"].append(given)
    try:
        header = json.dumps(document, allow_nan=False).encode()
    except ValueError:
        raise TensorError("inputs: expected finite numbers, got NaN or an infinity") from None
    return Body(b"".join([header, *raw]), len(header) if raw else None)


def response_message(answer: Body, *, raw: bool) -> ModelInferResponse:
    """The answer over HTTP as a message.

    Args:
        answer: in the protocol's form.
        raw: whether its tensors go into `raw_output_contents`.

    Raises:
        TensorError: it is not in that form.
    """
    try:
        return _response_message(answer, raw=raw)
    except (
        *(ValueError, LookupError, TypeError, AttributeError),
        *(OverflowError, RecursionError),
    ) as error:
        raise TensorError(f"the model's answer is not of the protocol: {error!r:.200}") from None


def _response_message(answer: Body, *, raw: bool) -> ModelInferResponse:
    document = json.loads(answer.content[: answer.json_length])
    binary = memoryview(answer.content)[answer.json_length or len(answer.content) :]
    response = ModelInferResponse(
        model_name=document["model_name"],
        model_version=document.get("model_version", ""),
        id=document.get("id", ""),
    )
    _to_parameters(document.get("parameters", {}), response.parameters)
    for output in document["outputs"]:
        datatype, parameters = output["datatype"], output.get("parameters", {})
        tensor = response.outputs.add(name=output["name"], datatype=datatype, shape=output["shape"])
        size = parameters.pop("binary_data_size", None)
        _to_parameters(parameters, tensor.parameters)
        if not raw:
            tensor.contents.CopyFrom(_to_contents(output["data"], datatype))
        elif size is None:
            response.raw_output_contents.append(_to_raw(output["data"], datatype))
        else:
            if not 0 <= size <= len(binary):
                raise ValueError(f"binary_data_size is {size}, but {len(binary)} bytes are left")
            response.raw_output_contents.append(bytes(binary[:size]))
            binary = binary[size:]
    return response


# --- Into JSON.


def _from_contents(contents: InferTensorContents, datatype: str, where: str) -> list[Any]:
    if datatype == "BYTES":
        return [_text(item, where) for item in contents.bytes_contents]
    field = _numeric(datatype, where).contents
    if not field:
        raise TensorError(f"{where}: {datatype} is for raw_input_contents only")
    return list(getattr(contents, field))


def _text(item: bytes, where: str) -> str:
    try:
        return item.decode()
    except UnicodeDecodeError:
        raise TensorError(f"{where}: BYTES that are not UTF-8 have no form in JSON") from None


def _from_parameters(parameters: Mapping[str, InferParameter]) -> dict[str, Any]:
    values = {name: value.WhichOneof("parameter_choice") for name, value in parameters.items()}
    return {name: getattr(parameters[name], field) for name, field in values.items() if field}


# --- From JSON.


def _to_contents(data: list[Any], datatype: str) -> InferTensorContents:
    if datatype == "BYTES":
        return InferTensorContents(bytes_contents=[item.encode() for item in data])
    return InferTensorContents(**{_numeric(datatype, "outputs").contents: data})


def _to_raw(data: list[Any], datatype: str) -> bytes:
    if datatype == "BYTES":
        items = [item.encode() for item in data]
        return b"".join(_LENGTH.pack(len(item)) + item for item in items)
    return np.array(data, _numeric(datatype, "outputs").dtype).tobytes()


def _to_parameters(values: dict[str, Any], parameters: Any) -> None:
    fields = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    for name, value in values.items():
        setattr(parameters[name], fields[type(value)], value)


def _numeric(datatype: str, where: str) -> _Numeric:
    if datatype not in _NUMERIC:
        known = ", ".join([*_NUMERIC, "BYTES"])
        raise TensorError(f"{where}: expected a datatype of {known}, got {datatype!r:.40}")
    return _NUMERIC[datatype]
