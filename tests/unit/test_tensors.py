import json
import struct
from typing import Any

import numpy as np
import pytest

from server.protocol.inference_pb2 import (
    InferParameter,
    InferTensorContents,
    ModelInferRequest,
    ModelInferResponse,
)
from server.tensors import Body, TensorError, request_body, response_message

NUMERIC = {
    "BOOL": ("?", "bool_contents"),
    "INT8": ("<i1", "int_contents"),
    "INT16": ("<i2", "int_contents"),
    "INT32": ("<i4", "int_contents"),
    "INT64": ("<i8", "int64_contents"),
    "UINT8": ("<u1", "uint_contents"),
    "UINT16": ("<u2", "uint_contents"),
    "UINT32": ("<u4", "uint_contents"),
    "UINT64": ("<u8", "uint64_contents"),
    "FP32": ("<f4", "fp32_contents"),
    "FP64": ("<f8", "fp64_contents"),
}


def tensor(datatype: str, *shape: int, **contents: Any) -> Any:
    values = InferTensorContents(**contents) if contents else None
    return ModelInferRequest.InferInputTensor(
        name="x", datatype=datatype, shape=shape, contents=values
    )


def items(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def document(request: ModelInferRequest) -> Any:
    body = request_body(request)
    assert body.json_length is None
    return json.loads(body.content)


def response(datatype: str, shape: list[int], data: Any, *, raw: bool) -> ModelInferResponse:
    output = {"name": "y", "datatype": datatype, "shape": shape, "data": data}
    body = {"model_name": "m", "outputs": [output]}
    return response_message(Body(json.dumps(body).encode()), raw=raw)


@pytest.mark.parametrize(("datatype", "kind"), NUMERIC.items())
def test_numbers_of_every_datatype(datatype: str, kind: tuple[str, str]) -> None:
    dtype, field = kind
    values = np.array([0, 1, 1], dtype)
    request = ModelInferRequest(inputs=[tensor(datatype, 3, **{field: values.tolist()})])
    (given,) = document(request)["inputs"]
    assert (given["name"], given["datatype"], given["shape"]) == ("x", datatype, [3])
    assert given["data"] == values.tolist()
    answer = response(datatype, [3], values.tolist(), raw=False)
    assert list(getattr(answer.outputs[0].contents, field)) == values.tolist()
    assert list(answer.raw_output_contents) == []
    # From a handler that knows no binary data.
    answer = response(datatype, [3], values.tolist(), raw=True)
    assert list(answer.raw_output_contents) == [values.tobytes()]
    assert not answer.outputs[0].HasField("contents")


def test_raw_contents_are_binary_data() -> None:
    request = ModelInferRequest(
        inputs=[tensor("FP16", 2), tensor("BYTES", 1)],
        raw_input_contents=[b"1234", items(b"\xff")],
    )
    body = request_body(request)
    assert body.content[body.json_length :] == b"1234" + items(b"\xff")
    given = json.loads(body.content[: body.json_length])
    assert given["parameters"] == {"binary_data_output": True}
    sizes = [each["parameters"] for each in given["inputs"]]
    assert sizes == [{"binary_data_size": 4}, {"binary_data_size": 5}]
    assert not any("data" in each for each in given["inputs"])


def test_binary_data_are_raw_contents() -> None:
    outputs = [
        {
            "name": name,
            "datatype": "FP32",
            "shape": [size // 4],
            "parameters": {"binary_data_size": size, "a": 1},
        }
        for name, size in (("y", 4), ("z", 8))
    ]
    header = json.dumps({"model_name": "m", "outputs": outputs}).encode()
    answer = response_message(Body(header + b"123412345678", len(header)), raw=True)
    assert list(answer.raw_output_contents) == [b"1234", b"12345678"]
    assert [list(each.parameters) for each in answer.outputs] == [["a"], ["a"]]
    with pytest.raises(TensorError, match="binary_data_size is 8, but 3 bytes are left"):
        response_message(Body(header + b"1234567", len(header)), raw=True)


def test_half_precision_is_raw_only() -> None:
    with pytest.raises(TensorError, match=r"inputs\[0\]: FP16 is for raw_input_contents only"):
        request_body(ModelInferRequest(inputs=[tensor("FP16", 2, fp32_contents=[0.5, 2])]))


def test_bytes_are_text_in_json() -> None:
    request = ModelInferRequest(inputs=[tensor("BYTES", 2, bytes_contents=[b"a", "ö".encode()])])
    assert document(request)["inputs"][0]["data"] == ["a", "ö"]
    answer = response("BYTES", [2], ["a", "ö"], raw=True)
    assert list(answer.raw_output_contents) == [items(b"a", "ö".encode())]
    answer = response("BYTES", [2], ["a", "ö"], raw=False)
    assert list(answer.outputs[0].contents.bytes_contents) == [b"a", "ö".encode()]


def test_everything_else_of_a_request() -> None:
    request = ModelInferRequest(
        id="one",
        parameters={"a": InferParameter(int64_param=1), "b": InferParameter()},
        inputs=[tensor("BOOL", 0)],
        outputs=[ModelInferRequest.InferRequestedOutputTensor(name="y")],
    )
    request.outputs[0].parameters["c"].bool_param = False
    request.inputs[0].parameters["d"].string_param = "e"
    assert document(request) == {
        "id": "one",
        "parameters": {"a": 1},
        "inputs": [
            {"name": "x", "shape": [0], "datatype": "BOOL", "parameters": {"d": "e"}, "data": []}
        ],
        "outputs": [{"name": "y", "parameters": {"c": False}}],
    }


def test_everything_else_of_an_answer() -> None:
    body = {
        "model_name": "m",
        "model_version": "2",
        "id": "one",
        "parameters": {"a": 1, "b": True, "c": "d", "e": 0.5},
        "outputs": [],
    }
    answer = response_message(Body(json.dumps(body).encode()), raw=False)
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "2", "one")
    assert {name: str(value).strip() for name, value in answer.parameters.items()} == {
        "a": "int64_param: 1",
        "b": "bool_param: true",
        "c": 'string_param: "d"',
        "e": "double_param: 0.5",
    }


@pytest.mark.parametrize(
    ("inputs", "raw", "message"),
    [
        (
            [tensor("FP32", 1)],
            [b"", b""],
            "raw_input_contents: expected one for each of 1 inputs, got 2",
        ),
        (
            [tensor("FP32", 1), tensor("FP32", 1)],
            [b"1234"],
            "raw_input_contents: expected one for each of 2 inputs, got 1",
        ),
        (
            [tensor("FP32", 1, fp32_contents=[1])],
            [b"1234"],
            "inputs[0]: has contents beside raw_input_contents",
        ),
        ([tensor("FP33", 1)], [], "inputs[0]: expected a datatype of BOOL, "),
        ([tensor("BYTES", 1, bytes_contents=[b"\xff"])], [], "inputs[0]: BYTES that are not UTF-8"),
        (
            [tensor("FP32", 1, fp32_contents=[float("nan")])],
            [],
            "inputs: expected finite numbers, got NaN or an infinity",
        ),
    ],
)
def test_a_request_that_is_not_of_the_protocol(
    inputs: list[Any], raw: list[bytes], message: str
) -> None:
    with pytest.raises(TensorError) as caught:
        request_body(ModelInferRequest(inputs=inputs, raw_input_contents=raw))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        b"not JSON",
        b"\xff",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"model_name": 1, "outputs": []}',
        b'{"model_name": "m", "outputs": [{"name": "y"}]}',
        b'{"model_name": "m", "parameters": {"a": null}, "outputs": []}',
    ],
)
def test_an_answer_that_is_not_of_the_protocol(body: bytes, raw: bool) -> None:
    with pytest.raises(TensorError, match="the model's answer is not of the protocol"):
        response_message(Body(body), raw=raw)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    ("datatype", "data"),
    [("X", []), ("INT64", ["1x"]), ("INT64", [1 << 70]), ("FP32", [[1], [2, 3]]), ("BYTES", [1])],
)
def test_an_answer_whose_tensor_is_none(datatype: str, data: Any, raw: bool) -> None:
    with pytest.raises(TensorError, match="the model's answer is not of the protocol"):
        response(datatype, [1], data, raw=raw)
