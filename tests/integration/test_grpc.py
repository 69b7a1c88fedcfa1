"""TorchServe's two gRPC services, opened by the configuration."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import torch
from grpc_tools import protoc

from tests.images import png
from tests.serving import ServerProcess, free_addresses, serving
from training.data import Data

PROTOS = Path(__file__).parent


class Clients(NamedTuple):
    """A server, and the generated modules and stubs to call it with."""

    server: ServerProcess
    plain: Any
    plain_stub: Any
    protocol: Any
    protocol_stub: Any


@pytest.fixture(scope="module")
def clients(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    out = tmp_path_factory.mktemp("grpc")
    protos = ["inference.proto", "open_inference.proto"]
    command = ["protoc", f"-I{PROTOS}", f"--python_out={out}", f"--grpc_python_out={out}"]
    assert protoc.main([*command, *protos]) == 0
    sys.path.insert(0, str(out))
    names = ("inference_pb2", "inference_pb2_grpc", "open_inference_pb2", "open_inference_pb2_grpc")
    plain, plain_grpc, protocol, protocol_grpc = map(importlib.import_module, names)
    sys.path.remove(str(out))
    port = next(iter(free_addresses().values())).rpartition(":")[2]
    with (
        serving(store, TS_GRPC_INFERENCE_PORT=port, TS_OPEN_INFERENCE_PROTOCOL="oip") as server,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield Clients(
            server,
            plain,
            plain_grpc.InferenceAPIsServiceStub(channel),
            protocol,
            protocol_grpc.GRPCInferenceServiceStub(channel),
        )


def predict(clients: Clients, model: str, body: bytes) -> Any:
    request = clients.plain.PredictionsRequest(model_name=model, input={"data": body})
    return json.loads(clients.plain_stub.Predictions(request, timeout=60).prediction)


def infer(clients: Clients, model: str, shape: list[int], datatype: str, **contents: Any) -> Any:
    tensor = clients.protocol.Tensor(
        name="x",
        datatype=datatype,
        shape=shape,
        contents=clients.protocol.Contents(**contents),
    )
    request = clients.protocol.ModelInferRequest(model_name=model, id="one", inputs=[tensor])
    return clients.protocol_stub.ModelInfer(request, timeout=60)


def test_an_image(clients: Clients, mnist_data: Data) -> None:
    answer = predict(clients, "mnist", png(mnist_data.test.x[0]))
    assert [prediction["label"] for prediction in answer["predictions"]] == [7]


def test_a_json_document(clients: Clients) -> None:
    answer = predict(clients, "xor", b'{"instances": [[0, 1], [1, 1]]}')
    assert [prediction["label"] for prediction in answer["predictions"]] == [1, 0]


def test_a_bad_request_is_explained(clients: Clients) -> None:
    answer = predict(clients, "xor", b'{"instances": [[0]]}')
    assert answer["code"] == 400
    assert answer["message"] == "instances[0]: expected 2 numbers, got 1"


def test_an_unknown_model(clients: Clients) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        predict(clients, "none", b"{}")
    assert "none" in caught.value.details()


def test_tensors_of_the_open_inference_protocol(clients: Clients, mnist_data: Data) -> None:
    images: torch.Tensor = mnist_data.test.x[:3]
    pixels = images.flatten().tolist()
    answer = infer(clients, "mnist", [3, 28, 28], "UINT8", uint_contents=pixels)
    label, probabilities = answer.outputs
    assert (answer.model_name, answer.model_version, answer.id) == ("mnist", "1.0", "one")
    assert list(label.contents.int64_contents) == mnist_data.test.y[:3].tolist()
    assert list(probabilities.shape) == [3, 10]
    assert sum(probabilities.contents.fp32_contents) == pytest.approx(3, abs=1e-5)
    answer = infer(clients, "xor", [2, 2], "FP32", fp32_contents=[0, 1, 1, 1])
    assert list(answer.outputs[0].contents.int64_contents) == [1, 0]


def test_a_bad_tensor_is_explained_and_does_not_end_the_worker(clients: Clients) -> None:
    """An error in HTTP's form would make the frontend fail and end the worker."""
    workers = {process.pid for process in clients.server.family()}
    for shape, count, message in (
        ([2, 2], 3, "expected 4 numbers for shape [2, 2], got 3"),
        ([1024, 2], 300_000, "the limit is 1048576"),
    ):
        answer = infer(clients, "xor", shape, "FP32", fp32_contents=[0.5] * count)
        (error,) = answer.outputs
        assert error.name == "error"
        assert message in error.contents.bytes_contents[0].decode()
    assert {process.pid for process in clients.server.family()} == workers
