"""gRPC through the door: the Open Inference Protocol, and TorchServe's own service."""

import concurrent.futures
import hashlib
import importlib
import json
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import pytest
import torch
from grpc_tools import protoc

from loadtest.servers import free_ports, wait_until
from server.protocol import inference_pb2 as messages
from server.protocol.inference_pb2 import ModelInferRequest
from server.protocol.inference_pb2_grpc import GRPCInferenceServiceStub
from tests.archives import COUNTING_HANDLER, SLOW_HANDLER, foreign
from tests.images import png
from tests.serving import ServerProcess, serving
from training.data import Data

PROTOS = Path(__file__).parent


class Clients:
    """Stubs of both services, and a server to call with them."""

    def __init__(self, server: ServerProcess, address: str, torchserve: Any = None) -> None:
        self.server = server
        self.channel = grpc.insecure_channel(address.removeprefix("http://"))
        self.protocol = GRPCInferenceServiceStub(self.channel)
        if torchserve:
            self.plain, plain_grpc = torchserve
            self.plain_stub = plain_grpc.InferenceAPIsServiceStub(self.channel)

    def predict(self, model: str, body: bytes) -> Any:
        request = self.plain.PredictionsRequest(model_name=model, input={"data": body})
        return json.loads(self.plain_stub.Predictions(request, timeout=60).prediction)

    def infer(
        self, model: str, shape: list[int], datatype: str, timeout: float = 60, **fields: Any
    ) -> Any:
        """Ask with raw contents if there are `raw`, else with the contents named."""
        tensor = ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=shape)
        raw = [fields.pop("raw")] if "raw" in fields else []
        for name, values in fields.items():
            getattr(tensor.contents, name).extend(values)
        request = ModelInferRequest(
            model_name=model, id="one", inputs=[tensor], raw_input_contents=raw
        )
        return self.protocol.ModelInfer(request, timeout=timeout)

    def refusal(self, *arguments: Any, **fields: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self.infer(*arguments, **fields)
        return caught.value.code(), caught.value.details()


def address() -> str:
    return f"http://127.0.0.1:{free_ports(1)[0]}"


@pytest.fixture(scope="module")
def torchserve(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Generated code of TorchServe's own service."""
    out = tmp_path_factory.mktemp("grpc")
    command = ["protoc", f"-I{PROTOS}", f"--python_out={out}", f"--grpc_python_out={out}"]
    assert protoc.main([*command, "inference.proto"]) == 0
    sys.path.insert(0, str(out))
    modules = [importlib.import_module(name) for name in ("inference_pb2", "inference_pb2_grpc")]
    sys.path.remove(str(out))
    return modules


@pytest.fixture(scope="module")
def clients(store: Path, torchserve: Any) -> Iterator[Clients]:
    grpc_address = address()
    with serving(store, GRPC_ADDRESS=grpc_address) as server:
        yield Clients(server, grpc_address, torchserve)


class TestTorchServe:
    def test_an_image(self, clients: Clients, mnist_data: Data) -> None:
        answer = clients.predict("mnist", png(mnist_data.test.x[0]))
        assert [prediction["label"] for prediction in answer["predictions"]] == [7]

    def test_a_json_document(self, clients: Clients) -> None:
        answer = clients.predict("xor", b'{"instances": [[0, 1], [1, 1]]}')
        assert [prediction["label"] for prediction in answer["predictions"]] == [1, 0]

    def test_a_bad_request_is_explained(self, clients: Clients) -> None:
        answer = clients.predict("xor", b'{"instances": [[0]]}')
        assert answer["code"] == 400
        assert answer["message"] == "instances[0]: expected 2 numbers, got 1"

    def test_an_unknown_model(self, clients: Clients) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            clients.predict("none", b"{}")
        assert "none" in caught.value.details()


class TestInferences:
    def test_contents_and_raw_contents(self, clients: Clients, mnist_data: Data) -> None:
        images: torch.Tensor = mnist_data.test.x[:3]
        pixels = images.flatten().to(torch.uint8)
        labels = mnist_data.test.y[:3].tolist()
        plain = clients.infer("mnist", [3, 28, 28], "UINT8", uint_contents=pixels.tolist())
        raw = clients.infer("mnist", [3, 28, 28], "UINT8", raw=pixels.numpy().tobytes())
        for answer in (plain, raw):
            assert (answer.model_name, answer.model_version, answer.id) == ("mnist", "1.0", "one")
            label, probabilities = answer.outputs
            assert (label.name, label.datatype, list(label.shape)) == ("label", "INT64", [3])
            assert (probabilities.name, probabilities.datatype) == ("probabilities", "FP32")
            assert list(probabilities.shape) == [3, 10]
        assert list(plain.outputs[0].contents.int64_contents) == labels
        assert sum(plain.outputs[1].contents.fp32_contents) == pytest.approx(3, abs=1e-5)
        label_bytes, probability_bytes = raw.raw_output_contents
        assert np.frombuffer(label_bytes, "<i8").tolist() == labels
        assert np.frombuffer(probability_bytes, "<f4").tolist() == pytest.approx(
            list(plain.outputs[1].contents.fp32_contents), abs=1e-6
        )

    def test_the_metadata_is_true(self, clients: Clients) -> None:
        for name, datatype in (("mnist", "UINT8"), ("xor", "FP32")):
            request = messages.ModelMetadataRequest(name=name)
            model = clients.protocol.ModelMetadata(request, timeout=60)
            (given,) = model.inputs
            assert given.datatype == datatype
            shape = [2 if length == -1 else length for length in given.shape]
            raw = np.ones(shape, {"UINT8": "<u1", "FP32": "<f4"}[datatype]).tobytes()
            answer = clients.infer(name, shape, datatype, raw=raw)
            for seen, said in zip(answer.outputs, model.outputs, strict=True):
                assert (seen.name, seen.datatype) == (said.name, said.datatype)
                assert [2, *seen.shape[1:]] == [2, *said.shape[1:]]
                assert (seen.shape[0], said.shape[0]) == (2, -1)

    def test_a_bad_tensor_is_explained_and_does_not_end_the_worker(self, clients: Clients) -> None:
        workers = {process.pid for process in clients.server.family()}
        for arguments, fields, message in (
            (
                (["xor", [2, 2], "FP32"]),
                {"fp32_contents": [1, 2, 3]},
                "inputs[0].data: expected 4 numbers for shape [2, 2], got 3",
            ),
            (
                (["xor", [1025, 2], "FP32"]),
                {"fp32_contents": [0.5] * 2050},
                "inputs[0].shape: expected [1 to 1024, 2], got [1025, 2]",
            ),
            (
                (["mnist", [1, 28, 28], "INT64"]),
                {"int64_contents": [0] * 784},
                "inputs[0].datatype: expected UINT8 or FP32, got 'INT64'",
            ),
            (
                (["xor", [1, 2], "FP32"]),
                {"raw": b"123"},
                "inputs[0].parameters.binary_data_size: expected 8 for FP32 of shape [1, 2], got 3",
            ),
        ):
            assert clients.refusal(*arguments, **fields) == (
                grpc.StatusCode.INVALID_ARGUMENT,
                message,
            )
        assert {process.pid for process in clients.server.family()} == workers

    def test_a_method_that_there_is_not(self, clients: Clients) -> None:
        call = clients.channel.unary_unary("/inference.GRPCInferenceService/ModelConfig")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=60)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


class TestDoor:
    def test_tokens(self, store: Path, tmp_path: Path) -> None:
        tokens = tmp_path / "tokens"
        tokens.write_text(hashlib.sha256(b"secret").hexdigest())
        grpc_address = address()
        with serving(store, "xor", GRPC_ADDRESS=grpc_address, TOKEN_FILE=str(tokens)) as server:
            clients = Clients(server, grpc_address)
            live = clients.protocol.ServerLive(messages.ServerLiveRequest(), timeout=60)
            ready = clients.protocol.ServerReady(messages.ServerReadyRequest(), timeout=60)
            assert live.live
            assert ready.ready
            request = messages.ModelMetadataRequest(name="xor")
            for token in (None, "Bearer wrong"):
                metadata = [("authorization", token)] if token else []
                with pytest.raises(grpc.RpcError) as caught:
                    clients.protocol.ModelMetadata(request, timeout=60, metadata=metadata)
                assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
                assert caught.value.details().startswith("expected authorization metadata")
            metadata = [("authorization", "Bearer secret")]
            assert clients.protocol.ModelMetadata(request, timeout=60, metadata=metadata).inputs

    def test_rate_limit(self, store: Path) -> None:
        grpc_address = address()
        with serving(store, "xor", GRPC_ADDRESS=grpc_address, RATE_LIMIT="5") as server:
            clients = Clients(server, grpc_address)

            def ask(_: int) -> Any:
                try:
                    return clients.infer("xor", [1, 2], "FP32", fp32_contents=[0, 1])
                except grpc.RpcError as error:
                    return error

            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(ask, range(40)))
            refused = [answer for answer in answers if isinstance(answer, grpc.RpcError)]
            assert 0 < len(refused) < 40
            assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert {error.details() for error in refused} == {"over 5 requests a second"}
            clients.protocol.ServerReady(messages.ServerReadyRequest(), timeout=60)

    def test_while_the_models_load(self, store: Path) -> None:
        grpc_address = address()
        with ServerProcess(store, "xor", GRPC_ADDRESS=grpc_address) as server:
            clients = Clients(server, grpc_address)
            live = clients.protocol.ServerLive(
                messages.ServerLiveRequest(), timeout=60, wait_for_ready=True
            )
            assert live.live
            ready = clients.protocol.ServerReady(messages.ServerReadyRequest(), timeout=60)
            assert not ready.ready
            request = messages.ModelReadyRequest(name="xor")
            assert not clients.protocol.ModelReady(request, timeout=60).ready
            assert clients.refusal("xor", [1, 2], "FP32", fp32_contents=[0, 1]) == (
                grpc.StatusCode.UNAVAILABLE,
                "the models are loading",
            )
            server.wait_until_ready()
            assert clients.protocol.ModelReady(request, timeout=60).ready
            assert clients.infer("xor", [1, 2], "FP32", fp32_contents=[0, 1]).outputs

    def test_deadlines_and_overload(self, tmp_path: Path) -> None:
        """The model's handler answers when a file appears, so that all wait until then."""
        foreign(tmp_path, "counting", COUNTING_HANDLER, "batchSize: 1\n")
        grpc_address = address()
        options = {"GRPC_ADDRESS": grpc_address, "REQUEST_TIMEOUT_SECONDS": "3"}
        with serving(tmp_path, **options, QUEUE_TIMEOUT_SECONDS="0.2") as server:
            clients = Clients(server, grpc_address)
            ask = ("counting", [1], "FP32")
            code, _ = clients.refusal(*ask, timeout=0.5, fp32_contents=[0])
            assert code == grpc.StatusCode.DEADLINE_EXCEEDED
            # The client's deadline ended the request in the door, too.
            inside = "haproxy_backend_current_sessions"
            wait_until(lambda: server.metric(inside, proxy="model:counting") == 0)
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                futures = [pool.submit(clients.refusal, *ask, fp32_contents=[0]) for _ in range(8)]
                seen = Counter(future.result() for future in futures)
            # Two requests may be inside.
            late = (grpc.StatusCode.DEADLINE_EXCEEDED, "no answer within 3.0 s")
            assert 1 <= seen.pop(late) <= 2
            ((code, message),) = seen
            assert code == grpc.StatusCode.UNAVAILABLE
            assert message.startswith("overloaded: ")

    def test_slow_senders_hold_no_slot(self, store: Path) -> None:
        """270 calls whose message does not come, of 256 that may be inside."""
        grpc_address = address()
        with serving(store, "xor", GRPC_ADDRESS=grpc_address) as server, ExitStack() as stack:
            silent = threading.Event()
            stack.callback(silent.set)

            def nothing() -> Iterator[bytes]:
                silent.wait(60)
                yield from ()

            calls = []
            for _ in range(3):  # a connection takes a hundred
                # Of its own, where gRPC would share one.
                options = [("grpc.use_local_subchannel_pool", 1)]
                target = grpc_address.removeprefix("http://")
                channel = stack.enter_context(grpc.insecure_channel(target, options=options))
                call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
                calls += [call.future(nothing(), timeout=60) for _ in range(90)]
            wait_until(lambda: server.metric("haproxy_frontend_current_sessions", proxy="door"))
            clients = Clients(server, grpc_address)
            for _ in range(5):
                assert clients.infer("xor", [1, 2], "FP32", fp32_contents=[0, 1]).outputs
            codes = {call.exception().code() for call in calls}
            assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}
            assert calls[0].details() == "the request did not come in time"

    def test_the_log_has_one_id_for_the_call_and_its_inference(self, store: Path) -> None:
        grpc_address = address()
        with serving(store, "xor", GRPC_ADDRESS=grpc_address, ACCESS_LOG="all") as server:
            Clients(server, grpc_address).infer("xor", [1, 2], "FP32", fp32_contents=[0, 1])

            def lines() -> list[Any]:
                lines = [line for line in server.output.splitlines() if line.startswith("{")]
                return [json.loads(line) for line in lines]

            wait_until(lambda: len(lines()) == 2)
            inference, call = sorted(lines(), key=lambda line: line["path"], reverse=True)
            assert call["path"] == "/inference.GRPCInferenceService/ModelInfer"
            assert inference["path"] == "/predictions/xor/1.0"
            assert (inference["model"], inference["status"]) == ("xor", 200)
            assert inference["id"] == call["id"] != ""
            assert server.accepted() == 1


class Callers:
    """Threads that call one after the other, and count what became of it."""

    def __init__(self, clients: Clients, count: int) -> None:
        self.clients = clients
        self.seen: Counter[tuple[grpc.StatusCode, str]] = Counter()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(count)]

    def _call(self) -> None:
        while not self._over.is_set():
            try:
                self.clients.infer("slow", [1], "FP32", fp32_contents=[0])
            except grpc.RpcError as error:
                self.seen[error.code(), error.details()] += 1
                if error.code() == grpc.StatusCode.UNAVAILABLE:
                    return
            else:
                self.seen[grpc.StatusCode.OK, ""] += 1

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def wait_until_gone(self) -> None:
        for thread in self._threads:
            thread.join(60)


# Answers in the protocol's form, after a moment.
PROTOCOL_HANDLER = SLOW_HANDLER.replace(
    'bytes(request["body"]) for request in requests',
    '\'{{"model_name": "slow", "outputs": []}}\' for _ in requests',
)


class TestChanges:
    def test_a_reload_loses_no_call(self, tmp_path: Path) -> None:
        foreign(tmp_path, "slow", PROTOCOL_HANDLER.format(seconds=0.01))
        grpc_address = address()
        with serving(tmp_path, GRPC_ADDRESS=grpc_address) as server:
            with Callers(Clients(server, grpc_address), 8) as callers:
                wait_until(lambda: callers.seen.total() > 100)
                server.process.send_signal(signal.SIGHUP)
                wait_until(lambda: "reloaded: " in server.output)
                before = callers.seen.total()
                wait_until(lambda: callers.seen.total() > before + 100)
            assert set(callers.seen) == {(grpc.StatusCode.OK, "")}

    @pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
    def test_a_stop_loses_no_call(self, tmp_path: Path, sent: signal.Signals) -> None:
        foreign(tmp_path, "slow", PROTOCOL_HANDLER.format(seconds=0.01))
        grpc_address = address()
        with serving(tmp_path, GRPC_ADDRESS=grpc_address, DRAIN_GRACE_SECONDS="1") as server:
            with Callers(Clients(server, grpc_address), 8) as callers:
                wait_until(lambda: callers.seen.total() > 100)
                server.process.send_signal(sent)
                assert server.wait(60) == 0
                callers.wait_until_gone()
            answered = callers.seen.pop((grpc.StatusCode.OK, ""))
            assert server.last_line == f"stopped: every request was answered ({answered:,})"
            # Who has no connection is refused.
            assert all("onnect" in message for _, message in callers.seen), callers.seen
