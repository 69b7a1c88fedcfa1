import json
import math
from array import array
from typing import Any

import pytest

from handler import v2
from handler.errors import PayloadTooLargeError, RequestError
from tests.unit.conftest import make_card

XOR, MNIST = make_card("xor"), make_card("mnist")


def document(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [0, 1, 1.5, -1]}
    return {"inputs": [tensor | changes]}


def test_a_flat_and_a_nested_list_are_equal() -> None:
    flat, options = v2.parse(document(), XOR)
    nested, _ = v2.parse(document(data=[[0, 1], [1.5, -1]]), XOR)
    assert options.id is None
    assert flat == nested == array("f", [0, 1, 1.5, -1])
    assert flat.typecode == "f"


def test_uint8() -> None:
    data = [255, 0] * 392
    instances, _ = v2.parse(document(shape=[1, 28, 28], datatype="UINT8", data=data), MNIST)
    assert instances == array("B", data)
    assert instances.typecode == "B"


def test_an_answer() -> None:
    answer, json_length = v2.answer(XOR, v2.Options("a"), [1, 0], [[0.25, 0.75], [0.5, 0.5]])
    assert json_length is None
    assert json.loads(answer) == {
        "model_name": "xor",
        "model_version": "1.0",
        "id": "a",
        "outputs": [
            {"name": "label", "shape": [2], "datatype": "INT64", "data": [1, 0]},
            {
                "name": "probabilities",
                "shape": [2, 2],
                "datatype": "FP32",
                "data": [0.25, 0.75, 0.5, 0.5],
            },
        ],
    }
    assert "id" not in json.loads(v2.answer(XOR, v2.Options(), [1], [[0.25, 0.75]]).body)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [2, 3]}, r"shape: expected \[1 to 1024, 2\], got \[2, 3\]"),
        ({"shape": [4]}, "shape: expected"),
        ({"shape": [0, 2]}, "shape: expected"),
        ({"shape": [True, 2]}, "shape: expected"),
        ({"shape": None}, "got null"),
        ({"shape": [3, 2]}, r"data: expected 6 numbers for shape \[3, 2\], got 4"),
        ({"datatype": "INT64"}, "datatype: expected UINT8 or FP32, got 'INT64'"),
        ({"datatype": ["FP32"]}, "datatype: expected UINT8 or FP32"),
        ({"data": None}, "data: expected a list, got null"),
        ({"data": [0, 1, "2", 3]}, r"data\[2\]: expected a number, got a string"),
        ({"data": [0, 1, math.inf, 3]}, r"data\[2\]: expected a finite number .*, got inf"),
        ({"data": [0, 1, 1e300, 3]}, r"data\[2\]: .* float32's range, .*, got 1e\+300"),
        ({"data": [[[0]], 1, 2, 3]}, r"data\[0\]: expected a number, got a list"),
        ({"datatype": "UINT8", "data": [0, 1, 256, 3]}, "whole number from 0 to 255, got 256"),
        ({"datatype": "UINT8", "data": [0, 1, 1.5, 3]}, "whole number from 0 to 255, got 1.5"),
    ],
)
def test_a_tensor_that_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        v2.parse(document(**changes), XOR)


@pytest.mark.parametrize("inputs", [[], {}, None, [1], [document(), document()]])
def test_anything_but_one_tensor(inputs: Any) -> None:
    with pytest.raises(RequestError, match="inputs: expected a list with one tensor"):
        v2.parse({"inputs": inputs}, XOR)


def test_an_id_that_is_not_a_string() -> None:
    with pytest.raises(RequestError, match="id: expected a string, got a number"):
        v2.parse(document() | {"id": 7}, XOR)


def test_too_many_instances() -> None:
    with pytest.raises(PayloadTooLargeError, match="1 to 1024"):
        v2.parse(document(shape=[1025, 2], data=[0] * 2050), XOR)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((0, 1), "a whole number from 0 to 1, got 7"),
        ((-5, 6.5), "a whole number from 0 to 6.5, got 7"),
    ],
)
def test_bytes_out_of_the_bounds_of_the_card(bounds: tuple[float, float], message: str) -> None:
    card = make_card("xor", input_bounds=bounds)
    with pytest.raises(RequestError, match=rf"data\[3\]: expected {message}"):
        v2.parse(document(datatype="UINT8", data=[0, 1, 1, 7]), card)
    assert v2.parse(document(datatype="UINT8", data=[0, 1, 1, 0]), card)[0].tolist() == [0, 1, 1, 0]


def test_pixels_out_of_bounds() -> None:
    with pytest.raises(RequestError, match="number from 0 to 255, got 256"):
        v2.parse(document(shape=[1, 28, 28], data=[0] * 783 + [256]), MNIST)


def test_a_deeply_nested_list() -> None:
    deep: Any = 0
    for _ in range(900):
        deep = [deep]
    with pytest.raises(RequestError, match="expected a number, got a list"):
        v2.parse(document(shape=[2, 2], data=[deep, *[0] * 3]), XOR)
