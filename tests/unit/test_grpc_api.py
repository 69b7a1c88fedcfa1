import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_tools import protoc
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.control import ControlServer
from server.grpc_api import GrpcServer
from server.protocol import inference_pb2 as messages
from server.protocol.inference_pb2 import ModelInferRequest
from server.protocol.inference_pb2_grpc import GRPCInferenceServiceStub
from server.supervisor import bind_unix
from tests.serving import ROOT
from tests.unit.test_control import Stub

ANSWER = {
    "model_name": "xor",
    "model_version": "1.0",
    "outputs": [{"name": "label", "datatype": "INT64", "shape": [1], "data": [1]}],
}


class Http:
    """An HTTP server that answers as the test says, and notes what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.body = json.dumps(ANSWER).encode()
        self.headers: dict[str, str] = {}
        self.asked: list[tuple[str, dict[str, str], bytes]] = []

    async def answer(self, request: Request) -> Response:
        self.asked.append((request.url.path, dict(request.headers), await request.body()))
        return Response(self.body, self.status, self.headers)

    def on(self, path: Path) -> tuple[Any, socket.socket]:
        return Starlette(routes=[Route("/{path:path}", self.answer, methods=["POST"])]), bind_unix(
            path
        )


class Service(Stub):
    torchserve: Path | None = None

    def inference_socket(self) -> Path | None:
        return self.torchserve


class Served:
    """A gRPC server with a service, and the door behind it."""

    def __init__(self, directory: Path) -> None:
        self.service = Service()
        self.directory = directory
        self.door = Http()
        self.torchserve = Http()
        self.channel = grpc.insecure_channel(f"unix:{directory}/grpc.sock")
        self.stub = GRPCInferenceServiceStub(self.channel)

    @contextlib.contextmanager
    def running(self, *, door: bool = True, torchserve: bool = False) -> Iterator[None]:
        apps = []
        with contextlib.ExitStack() as stack:
            if door:
                apps.append(self.door.on(self.directory / "door.sock"))
            if torchserve:
                self.service.torchserve = self.directory / "ts.sock"
                apps.append(self.torchserve.on(self.service.torchserve))
            for _, listener in apps:
                stack.enter_context(listener)
            grpc_socket = self.directory / "grpc.sock"
            api = GrpcServer(self.service, grpc_socket, self.directory / "door.sock")
            server = ControlServer(apps, [api])
            server.start()
            try:
                yield
            finally:
                self.channel.close()
                server.stop()

    def infer(self, model: str = "xor", version: str = "", **fields: Any) -> Any:
        tensor = ModelInferRequest.InferInputTensor(name="input", datatype="FP32", shape=[1, 2])
        tensor.contents.fp32_contents.extend([0, 1])
        request = ModelInferRequest(model_name=model, model_version=version, inputs=[tensor])
        request.MergeFrom(ModelInferRequest(**fields))
        return self.stub.ModelInfer(request, timeout=30, metadata=[("x-request-id", "mine")])

    def refusal(self, **fields: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self.infer(**fields)
        return caught.value.code(), caught.value.details()


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path)


def test_the_generated_code_is_of_the_proto(tmp_path: Path) -> None:
    """Run the command in the proto's head again to renew it."""
    proto = "server/protocol/inference.proto"
    command = ["protoc", f"-I{ROOT}"]
    command += [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main([*command, str(ROOT / proto)]) == 0
    made = sorted((tmp_path / proto).parent.iterdir())
    assert len(made) == 3
    for file in made:
        assert file.read_text() == (ROOT / proto).with_name(file.name).read_text(), file.name


def test_health_and_metadata(served: Served) -> None:
    with served.running():
        stub, service = served.stub, served.service
        for status in (200, 503):
            service.live = service.ready = status
            live = stub.ServerLive(messages.ServerLiveRequest(), timeout=30)
            ready = stub.ServerReady(messages.ServerReadyRequest(), timeout=30)
            assert live.live == ready.ready == (status == 200)
        server = stub.ServerMetadata(messages.ServerMetadataRequest(), timeout=30)
        assert (server.name, server.version) == ("model-server", "0.1.0")
        assert list(server.extensions) == ["binary_tensor_data"]
        for name, version, ready in (
            ("xor", "", True),
            ("mnist", "", False),
            ("mnist", "1.0", True),
        ):
            request = messages.ModelReadyRequest(name=name, version=version)
            assert stub.ModelReady(request, timeout=30).ready == ready
        request = messages.ModelMetadataRequest(name="mnist")
        model = stub.ModelMetadata(request, timeout=30)
        assert (model.name, list(model.versions)) == ("mnist", ["2.0", "1.0"])
        assert model.platform == "pytorch_torchscript"
        (given,) = model.inputs
        assert (given.name, given.datatype) == ("input", "UINT8")
        assert list(given.shape) == [-1, 28, 28]
        assert [tensor.name for tensor in model.outputs] == ["label", "probabilities"]


def test_a_model_that_there_is_not(served: Served) -> None:
    with served.running():
        for call, request in (
            (served.stub.ModelReady, messages.ModelReadyRequest(name="a")),
            (served.stub.ModelMetadata, messages.ModelMetadataRequest(name="a")),
            (served.stub.ModelInfer, ModelInferRequest(model_name="a")),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(request, timeout=30)
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
            assert caught.value.details() == "there is no model a; there are: mnist, xor"
        assert served.refusal(version="3") == (
            grpc.StatusCode.NOT_FOUND,
            "model xor has no version 3; there are: 1.0",
        )
        assert served.door.asked == []


def test_an_inference_goes_through_the_door(served: Served) -> None:
    with served.running():
        answer = served.infer(id="one")
        assert list(answer.outputs[0].contents.int64_contents) == [1]
        ((path, headers, body),) = served.door.asked
        assert path == "/predictions/xor/1.0"
        assert headers["x-protocol"] == "v2"
        assert headers["x-request-id"] == "mine"
        document = json.loads(body)
        assert document["id"] == "one"
        assert document["inputs"][0]["data"] == [0, 1]


def test_raw_contents_go_and_come_as_they_are(served: Served) -> None:
    output = {
        "name": "label",
        "datatype": "INT64",
        "shape": [1],
        "parameters": {"binary_data_size": 8},
    }
    header = json.dumps(ANSWER | {"outputs": [output]}).encode()
    served.door.body = header + b"87654321"
    served.door.headers = {"Inference-Header-Content-Length": str(len(header))}
    tensor = ModelInferRequest.InferInputTensor(name="input", datatype="FP32", shape=[1, 2])
    request = ModelInferRequest(model_name="xor", inputs=[tensor], raw_input_contents=[b"12345678"])
    with served.running():
        answer = served.stub.ModelInfer(request, timeout=30)
    assert list(answer.raw_output_contents) == [b"87654321"]
    ((_, headers, body),) = served.door.asked
    length = int(headers["inference-header-content-length"])
    assert body[length:] == b"12345678"
    assert json.loads(body[:length])["inputs"][0]["parameters"] == {"binary_data_size": 8}


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, grpc.StatusCode.INVALID_ARGUMENT),
        (404, grpc.StatusCode.NOT_FOUND),
        (408, grpc.StatusCode.DEADLINE_EXCEEDED),
        (413, grpc.StatusCode.INVALID_ARGUMENT),
        (415, grpc.StatusCode.INVALID_ARGUMENT),
        (418, grpc.StatusCode.UNKNOWN),
        (429, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (500, grpc.StatusCode.INTERNAL),
        (503, grpc.StatusCode.UNAVAILABLE),
        (504, grpc.StatusCode.DEADLINE_EXCEEDED),
        (507, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_errors_have_grpc_s_status_and_the_message(
    served: Served, status: int, code: grpc.StatusCode
) -> None:
    with served.running():
        served.door.status = status
        for key in ("error", "message"):
            served.door.body = json.dumps({"code": status, key: "why: ö"}).encode()
            assert served.refusal() == (code, "why: ö")
        for body in (b"[]", b"{}", b"text"):
            served.door.body = body
            assert served.refusal() == (code, f"status {status}: {body.decode()}")


def test_what_cannot_be_asked(served: Served) -> None:
    with served.running():
        code, message = served.refusal(raw_input_contents=[b"12345678"])
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert message == "inputs[0]: has contents beside raw_input_contents"
        code, message = served.refusal(id="x" * (1 << 20))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert "bytes over HTTP; the limit is 1048576" in message
        assert served.refusal(id="x" * (2 << 20))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert served.door.asked == []


def test_an_answer_that_is_not_of_the_protocol(served: Served) -> None:
    with served.running():
        served.door.body = b'{"predictions": []}'
        code, message = served.refusal()
        assert code == grpc.StatusCode.INTERNAL
        assert message.startswith("the model's answer is not of the protocol")


def test_past_a_door_that_accepts_no_more(served: Served) -> None:
    """In a drain, calls still come over connections that the door has accepted before."""
    with served.running(door=False, torchserve=True):
        assert list(served.infer().outputs[0].contents.int64_contents) == [1]
        ((path, headers, _),) = served.torchserve.asked
        assert path == "/predictions/xor/1.0"
        assert headers["x-protocol"] == "v2"


def test_nobody_to_ask(served: Served) -> None:
    with served.running(door=False):
        assert served.refusal() == (grpc.StatusCode.UNAVAILABLE, "the models are loading")
        served.service.torchserve = served.directory / "nothing.sock"
        code, message = served.refusal()
        assert code == grpc.StatusCode.UNAVAILABLE
        assert message.startswith("the request was lost (ConnectError(")
