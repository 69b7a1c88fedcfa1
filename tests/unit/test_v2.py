import json
import math
from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handler import v2
from handler.errors import PayloadTooLargeError, RequestError
from tests.untrained import make_card

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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": 7}, "id: expected a string, got a number"),
        ({"id": "a" * 10240}, "id: expected at most 256 characters, got 10240"),
        ({"parameters": 1}, "parameters: expected an object, got a number"),
        (
            {"parameters": {"binary_data_output": 1}},
            "^parameters.binary_data_output: expected true or false, got a number",
        ),
        ({"outputs": {}}, "outputs: expected a list, got an object"),
        ({"outputs": ["label"]}, r"outputs\[0\]: expected an object, got a string"),
        ({"outputs": [{"name": "x"}]}, "name: expected label or probabilities, got 'x'"),
        ({"outputs": [{"name": ["label"]}]}, "name: expected label or probabilities, got a list"),
        ({"outputs": [{"name": "label"}] * 2}, r"outputs\[1\].name: label stands in outputs twice"),
        (
            {"outputs": [{"name": "label", "parameters": {"binary_data": None}}]},
            r"^outputs\[0\].parameters.binary_data: expected true or false, got null",
        ),
    ],
)
def test_options_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        v2.parse(document() | changes, XOR)


def test_parameters_that_are_not_known_are_ignored() -> None:
    known = {"outputs": [], "parameters": {"timeout": 5}}
    _, options = v2.parse(document(parameters={"x": []}) | known, XOR)
    assert options == v2.Options()


def binary(content: bytes, **changes: Any) -> tuple[bytes, str]:
    """A body with a tensor's binary data, and the length of its JSON."""
    tensor: dict[str, Any] = {"name": "x", "shape": [2, 2], "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": len(content)}
    head = json.dumps({"inputs": [tensor | changes]}).encode()
    return head + content, str(len(head))


def parse_binary(body: bytes, length: str, card: Any = XOR) -> tuple[Any, v2.Options]:
    document, rest = v2.split(body, length)
    return v2.parse(document, card, rest)


NUMBERS = array("f", [0, 1, 1.5, -1])


def test_binary_numbers() -> None:
    numbers, _ = parse_binary(*binary(NUMBERS.tobytes()))
    assert numbers == NUMBERS
    assert numbers.typecode == "f"
    pixels = bytes(range(256)) * 3 + bytes(16)
    numbers, _ = parse_binary(*binary(pixels, shape=[1, 28, 28], datatype="UINT8"), MNIST)
    assert numbers == array("B", pixels)


def test_json_numbers_with_the_header_of_binary_data() -> None:
    body = json.dumps(document()).encode()
    assert parse_binary(body, str(len(body)))[0] == NUMBERS


@pytest.mark.parametrize("length", ["", "0", "-1", "+1", "1_0", "1.0", "²", "9" * 5000, "1000"])
def test_a_length_that_is_not_one_of_the_json(length: str) -> None:
    with pytest.raises(RequestError, match="Inference-Header-Content-Length: expected a length"):
        v2.split(binary(NUMBERS.tobytes())[0], length)


def test_a_length_that_cuts_the_json() -> None:
    body, length = binary(NUMBERS.tobytes())
    for wrong in (int(length) - 1, int(length) + 1):
        with pytest.raises(RequestError, match="not valid JSON"):
            v2.split(body, str(wrong))


DATA = NUMBERS.tobytes()
SIZE = "binary_data_size"


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        (DATA[:-1], {}, r"size: expected 16 for FP32 of shape \[2, 2\], got 15"),
        (DATA + b"0", {}, "got 17"),
        (DATA, {"datatype": "UINT8"}, r"expected 4 for UINT8 of shape \[2, 2\], got 16"),
        (DATA, {"datatype": "BYTES"}, "expected UINT8 or FP32, got 'BYTES'"),
        (DATA, {"parameters": {SIZE: "16"}}, "got a string"),
        (DATA, {"parameters": {SIZE: 16.0}}, "got a number"),
        (DATA, {"parameters": {SIZE: -16}}, "got -16"),
        (DATA[:8], {"parameters": {SIZE: 16}}, "is 16, but 8 bytes follow the JSON"),
        (DATA * 2, {"parameters": {SIZE: 16}}, "is 16, but 32 bytes follow the JSON"),
        (DATA, {"data": [1, 2, 3, 4]}, "expected data or binary_data_size, got both"),
        (DATA, {"parameters": {}}, "16 bytes follow the JSON, but no tensor has a binary_data"),
        (DATA, {"parameters": [SIZE]}, "parameters: expected an object, got a list"),
        (DATA, {"name": None}, "name: expected a string, got null"),
        (array("f", [0, math.nan, 0, 0]).tobytes(), {}, r"inputs\[0\]\[1\]: .* finite .*, got nan"),
        (array("f", [0, 0, 0, -math.inf]).tobytes(), {}, r"\[3\]: expected a finite .*, got -inf"),
    ],
)
def test_binary_data_that_is_refused(data: bytes, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_binary(*binary(data, **changes))


def test_binary_data_without_the_length_of_the_json() -> None:
    with pytest.raises(RequestError, match="no header Inference-Header-Content-Length"):
        v2.parse(document(data=None) | json.loads(binary(b"")[0]), XOR)


@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
def test_binary_numbers_out_of_bounds(datatype: str) -> None:
    card = make_card("xor", input_bounds=(0, 6.5))
    data = array("B" if datatype == "UINT8" else "f", [0, 6, 7, 8]).tobytes()
    with pytest.raises(RequestError, match=r"\[0\]\[2\]: expected a number from 0 to 6.5, got 7"):
        parse_binary(*binary(data, datatype=datatype), card)


def test_a_binary_answer() -> None:
    options = v2.Options(None, (("probabilities", True), ("label", False)))
    body, length = v2.answer(XOR, options, [1, 0], [[0.25, 0.75], [0.5, 0.5]])
    assert length is not None
    probabilities, label = json.loads(body[:length])["outputs"]
    assert probabilities == {
        "name": "probabilities",
        "shape": [2, 2],
        "datatype": "FP32",
        "parameters": {"binary_data_size": 16},
    }
    assert label["data"] == [1, 0]
    assert array("f", body[length:]).tolist() == [0.25, 0.75, 0.5, 0.5]


def test_the_outputs_asked_for() -> None:
    everything = {"parameters": {"binary_data_output": True}}
    _, options = v2.parse(document() | everything, XOR)
    assert options.outputs == (("label", True), ("probabilities", True))
    label = {"name": "label", "parameters": {"binary_data": False}}
    _, options = v2.parse(document() | everything | {"outputs": [label]}, XOR)
    assert options.outputs == (("label", False),)
    answer, _ = v2.answer(XOR, options, [1], [[0.25, 0.75]])
    assert [output["name"] for output in json.loads(answer)["outputs"]] == ["label"]


def test_an_output_that_is_not_finite() -> None:
    for is_binary in (True, False):
        with pytest.raises(ValueError, match="not finite"):
            v2.answer(XOR, v2.Options(None, (("label", is_binary),)), [0], [[math.nan, 0.5]])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


NAMES = ["id", "inputs", "outputs", "parameters", "name", "shape", "datatype", "data", SIZE]


@st.composite
def asked(draw: st.DrawFn) -> tuple[dict[str, Any], bytes, int, bool]:
    """A document, the binary data after it, by how much its length is wrong, and if all is well."""
    count, is_binary = draw(st.integers(1, 3)), draw(st.booleans())
    datatype = draw(st.sampled_from(["FP32", "UINT8"]))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    data = draw(
        st.lists(
            st.integers(0, 255) if datatype == "UINT8" else finite,
            min_size=2 * count,
            max_size=2 * count,
        )
    )
    content = array("B" if datatype == "UINT8" else "f", data).tobytes() if is_binary else b""
    parameters = {SIZE: len(content)} if is_binary else {}
    tensor: dict[str, Any] = {"name": "x", "shape": [count, 2], "datatype": datatype}
    tensor |= {"parameters": parameters} if is_binary else {"data": data}
    output = {"name": "label", "parameters": {"binary_data": draw(st.booleans())}}
    document = {
        "id": draw(st.text(max_size=256)),
        "inputs": [tensor],
        "outputs": draw(st.sampled_from([[], [output]])),
        "parameters": {"binary_data_output": draw(st.booleans())},
    }
    defect = draw(st.sampled_from(["none", "none", "field", "length", "content"]))
    if defect == "field":
        spoilt = draw(st.sampled_from([document, tensor, parameters, output, output["parameters"]]))
        assert isinstance(spoilt, dict)
        spoilt[draw(st.sampled_from(NAMES))] = draw(ANYTHING)
    if defect == "content":
        content = draw(st.binary(max_size=30))
    return document, content, draw(st.integers(-40, 40)) * (defect == "length"), defect == "none"


@settings(max_examples=500, derandomize=True, deadline=None, database=None)
@given(asked())
def test_whatever_comes_is_parsed_or_refused(
    request_: tuple[dict[str, Any], bytes, int, bool],
) -> None:
    """And what is parsed has numbers that the model takes, and options that can be answered."""
    document, content, off, is_well = request_
    head = json.dumps(document).encode()
    try:
        numbers, options = parse_binary(head + content, str(len(head) + off))
    except RequestError:
        assert not is_well
        return
    assert len(numbers) in (2, 4, 6)
    assert all(map(math.isfinite, numbers))
    count = len(numbers) // 2
    body, length = v2.answer(XOR, options, [0] * count, [[1.0, 0.0]] * count)
    answer = json.loads(body[:length])
    sizes = [o["parameters"][SIZE] for o in answer["outputs"] if "parameters" in o]
    assert sum(sizes) == len(body[length:] if length else b"")


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.binary(max_size=60), st.text(max_size=6))
def test_bytes_that_are_no_request(body: bytes, length: str) -> None:
    with pytest.raises(RequestError):
        parse_binary(body, length)


@pytest.mark.parametrize("inputs", [[], {}, None, [1], [document(), document()]])
def test_anything_but_one_tensor(inputs: Any) -> None:
    with pytest.raises(RequestError, match="inputs: expected a list with one tensor"):
        v2.parse({"inputs": inputs}, XOR)


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
