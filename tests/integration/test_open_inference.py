"""Inference requests of the Open Inference Protocol, with binary tensors, through the door."""

import json
from array import array
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.serving import ServerProcess
from training.data import Data

LENGTH = "Inference-Header-Content-Length"
TENSOR = {"name": "x", "shape": [2, 2], "datatype": "FP32"}
SIZE = {"parameters": {"binary_data_size": 16}}
NUMBERS = array("f", [0, 1, 1, 1]).tobytes()
BINARY_OUT = {"parameters": {"binary_data_output": True}}


def infer(
    server: ServerProcess,
    document: Any,
    binary: bytes = b"",
    length: str | None = None,
    model: str = "xor",
) -> requests.Response:
    """Send a document and binary data; `length` is that of the document where it is None."""
    head = json.dumps(document).encode()
    return requests.post(
        f"{server.inference}/v2/models/{model}/infer",
        data=head + binary,
        headers={LENGTH: str(len(head)) if length is None else length},
        timeout=60,
    )


def outputs(response: requests.Response) -> dict[str, list[float]]:
    """The tensors of an answer with binary data, by name."""
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/octet-stream"
    at = int(response.headers[LENGTH])
    found = {}
    for output in json.loads(response.content[:at])["outputs"]:
        end = at + output["parameters"]["binary_data_size"]
        typecode = {"INT64": "q", "FP32": "f"}[output["datatype"]]
        found[output["name"]] = array(typecode, response.content[at:end]).tolist()
        at = end
    assert at == len(response.content)
    return found


def test_binary_tensors_there_and_back(server: ServerProcess) -> None:
    """What tritonclient sends by default."""
    tensors = outputs(infer(server, {"inputs": [TENSOR | SIZE]} | BINARY_OUT, NUMBERS))
    assert list(tensors) == ["label", "probabilities"]
    assert tensors["label"] == [1, 0]
    body = {"instances": [[0, 1], [1, 1]]}
    rows = requests.post(server.url("xor"), json=body, timeout=60).json()["predictions"]
    expected = [number for row in rows for number in row["probabilities"]]
    assert tensors["probabilities"] == pytest.approx(expected, abs=1e-6)


def test_1024_binary_images(server: ServerProcess, mnist_data: Data) -> None:
    """As JSON they would be over the limit of a body."""
    images = mnist_data.test.x[:1024]
    tensor = {"name": "x", "shape": [1024, 28, 28], "datatype": "UINT8"}
    size = {"parameters": {"binary_data_size": 1024 * 784}}
    document = {"inputs": [tensor | size], "outputs": [{"name": "label"}]} | BINARY_OUT
    tensors = outputs(infer(server, document, images.numpy().tobytes(), model="mnist"))
    correct = sum(
        a == e for a, e in zip(tensors["label"], mnist_data.test.y[:1024].tolist(), strict=True)
    )
    assert correct >= 1000


GOOD = {"inputs": [TENSOR | SIZE]}
REFUSED: list[tuple[Any, bytes, str | None, str]] = [
    (GOOD, NUMBERS[:-1], None, "binary_data_size is 16, but 15 bytes follow the JSON"),
    (GOOD, NUMBERS + b"0", None, "binary_data_size is 16, but 17 bytes follow the JSON"),
    (GOOD, NUMBERS, "100000", "Inference-Header-Content-Length: expected a length from 1 to"),
    (GOOD, NUMBERS, "-1", "Inference-Header-Content-Length: expected a length"),
    (GOOD, NUMBERS, "x", "Inference-Header-Content-Length: expected a length"),
    (GOOD, NUMBERS, "20", "not valid JSON"),
    (GOOD, NUMBERS, "110", "not valid JSON"),
    (
        {"inputs": [TENSOR | SIZE | {"data": [0, 1, 1, 1]}]},
        NUMBERS,
        None,
        "binary_data_size, got b",
    ),
    ({"inputs": [TENSOR | {"data": [0, 1, 1, 1]}]}, NUMBERS, None, "16 bytes follow the JSON, but"),
    ({"inputs": [TENSOR]}, b"", None, "inputs[0].data: expected a list, got null"),
    ({"inputs": [TENSOR | SIZE] * 2}, NUMBERS * 2, None, "inputs: expected a list with one tensor"),
    ({"inputs": []}, b"", None, "inputs: expected a list with one tensor"),
    ({"inputs": [TENSOR | SIZE | {"datatype": "UINT8"}]}, NUMBERS, None, "expected 4 for UINT8"),
    ({"inputs": [TENSOR | SIZE | {"datatype": "FP16"}]}, NUMBERS, None, "expected UINT8 or FP32"),
    (GOOD | {"outputs": [{"name": "logits"}]}, NUMBERS, None, "got 'logits'"),
    (GOOD | {"id": "a" * 10240}, NUMBERS, None, "id: expected at most 256 characters, got 10240"),
    (GOOD, array("f", [0, 0, float("nan"), 0]).tobytes(), None, "inputs[0][2]: expected a finite"),
    ({"instances": [[0, 1]]}, b"", None, 'expected a JSON object with "inputs"'),
]


@pytest.mark.parametrize(
    ("document", "binary", "length", "message"), REFUSED, ids=[row[3][:40] for row in REFUSED]
)
def test_what_is_refused(
    server: ServerProcess, document: Any, binary: bytes, length: str | None, message: str
) -> None:
    response = infer(server, document, binary, length)
    assert response.status_code == 400
    assert response.headers["Content-Type"] == "application/json"
    assert response.json().keys() == {"code", "type", "error"}
    assert message in response.json()["error"]


def test_bad_requests_do_not_harm_their_neighbours(server: ServerProcess) -> None:
    alone = outputs(infer(server, GOOD | BINARY_OUT, NUMBERS))
    good = (GOOD | BINARY_OUT, NUMBERS, None)
    mixed: list[Any] = [request for row in REFUSED for request in (row[:3], good)] * 4
    with ThreadPoolExecutor(32) as pool:
        responses = list(pool.map(lambda row: infer(server, *row), mixed))
    assert [response.status_code for response in responses] == [400, 200] * (len(mixed) // 2)
    for response in responses[1::2]:
        tensors = outputs(response)
        assert tensors["label"] == alone["label"]
        assert tensors["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-6)
