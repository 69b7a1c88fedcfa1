"""The front door of a real server."""

import contextlib
import hashlib
import http.client
import json
import socket
import ssl
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import requests

from loadtest.servers import free_ports, wait_until
from tests.archives import COUNTING_HANDLER, SLOW_HANDLER, STATUS_HANDLER, foreign
from tests.serving import ROOT, ServerProcess, serving
from tests.tls import make_certificate

SEVEN = (ROOT / "samples" / "seven.png").read_bytes()
# Answers each request with the model version in the handler's code.
VERSION_HANDLER = """
def handle(requests, context):
    if requests is None:
        return None
    return [b"{version}"] * len(requests)
"""


@pytest.fixture(scope="module")
def status_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers with the status given in the body."""
    store = tmp_path_factory.mktemp("store")
    foreign(store, "status", STATUS_HANDLER)
    return store


def ask(server: ServerProcess, body: Any = b"200", **options: Any) -> requests.Response:
    return requests.post(server.url("status"), data=body, timeout=60, **options)


def address(server: ServerProcess) -> tuple[str, int]:
    return "127.0.0.1", int(server.inference.rpartition(":")[2])


def talk(server: ServerProcess, sent: bytes) -> bytes:
    """Send bytes; return everything that the door answers until it closes the connection."""
    with socket.create_connection(address(server), timeout=30) as client:
        client.sendall(sent)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := client.recv(1 << 16):
                answer += part
        return answer


class TestIds:
    def test_kept_or_generated(self, server: ServerProcess) -> None:
        for path in ("/predictions/mnist", "/predictions/nothing", "/nowhere"):
            url = server.inference + path
            mine = requests.post(url, data=SEVEN, headers={"X-Request-Id": "mine-1"}, timeout=60)
            assert mine.headers["X-Request-Id"] == "mine-1"
            made = {
                requests.post(url, data=SEVEN, timeout=60).headers["X-Request-Id"] for _ in range(2)
            }
            assert len(made) == 2
            assert all(uuid.UUID(each) for each in made)

    @pytest.mark.parametrize("bad", ["x" * 129, "with space", "b\xf6se"])
    def test_an_id_unfit_for_logs_is_replaced(self, server: ServerProcess, bad: str) -> None:
        headers = {"X-Request-Id": bad.encode("latin-1")}
        response = requests.post(server.url("mnist"), data=SEVEN, headers=headers, timeout=60)
        assert uuid.UUID(response.headers["X-Request-Id"])


class TestAccessLog:
    def lines(self, server: ServerProcess) -> list[dict[str, Any]]:
        return [json.loads(line) for line in server.output.splitlines() if line.startswith("{")]

    @pytest.mark.parametrize(
        ("choice", "statuses"), [("all", [200, 400, 404]), ("errors", [400, 404]), ("none", [])]
    )
    def test_one_line_for_each_selected_request(
        self, status_store: Path, choice: str, statuses: list[int]
    ) -> None:
        with serving(status_store, ACCESS_LOG=choice) as server:
            for status in (200, 400):
                ask(server, f"{status}", headers={"X-Request-Id": f"id-{status}"})
            requests.post(f'{server.inference}/predictions/"odd', timeout=60)
            wait_until(lambda: server.accepted() == 3)
            wait_until(lambda: len(self.lines(server)) >= len(statuses))
            lines = self.lines(server)
            assert [line["status"] for line in lines] == statuses
            if choice != "none":
                line = lines[statuses.index(400)]
                assert line["id"] == "id-400"
                assert (line["model"], line["version"]) == ("status", "1.0")
                assert (line["method"], line["path"]) == ("POST", "/predictions/status")
                assert line["bytes_in"] > 3
                times = [line[f"{what}_ms"] for what in ("waiting", "connecting", "serving")]
                assert 0 <= sum(times) <= line["total_ms"] + 3
                assert lines[-1]["path"] == "/predictions/%22odd"


class TestTokens:
    def test_only_tokens_now_in_the_file_are_admitted(
        self, status_store: Path, tmp_path: Path
    ) -> None:
        file = tmp_path / "tokens"

        def admit(*tokens: str) -> None:
            digests = [hashlib.sha256(token.encode()).hexdigest() for token in tokens]
            partial = tmp_path / "partial"
            partial.write_text("".join(f"{digest} name\n" for digest in digests))
            partial.replace(file)

        def status(token: str | None) -> int:
            headers = {"Authorization": token} if token is not None else {}
            return ask(server, headers=headers).status_code

        admit("first", "second")
        with serving(status_store, TOKEN_FILE=str(file)) as server:
            assert status("Bearer first") == status("Bearer second") == 200
            for wrong in (None, "", "first", "Basic first", "Bearer third", "Bearer first second"):
                assert status(wrong) == 401, wrong
            refused = ask(server)
            assert refused.headers["WWW-Authenticate"] == "Bearer"
            assert refused.json()["code"] == 401
            assert "expected an Authorization header" in refused.json()["message"]
            # The protocol's probes need no token; everything about a model does.
            assert (
                requests.get(f"{server.inference}/v2/health/ready", timeout=60).status_code == 200
            )
            assert requests.get(f"{server.inference}/v2/models/x", timeout=60).status_code == 401
            admit("second", "third")
            wait_until(lambda: status("Bearer third") == 200)
            assert status("Bearer first") == 401
            # An unusable file changes nothing and is reported.
            file.write_text("not a digest\n")
            wait_until(lambda: "tokens and certificate stay as they were" in server.output)
            assert "line 1: expected the SHA-256 of a token" in server.output
            assert status("Bearer third") == 200
            assert server.metric("haproxy_frontend_http_responses_total", code="4xx") >= 8


def test_rate_limit(status_store: Path) -> None:
    with serving(status_store, RATE_LIMIT="5") as server:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: ask(server), range(40)))
        codes = {answer.status_code for answer in answers}
        assert codes == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["Retry-After"] == "1"
        assert refused.json()["message"] == "over 5 requests a second"
        # Other clients are unaffected, and so are paths that need no model.
        assert requests.get(f"{server.inference}/v2/health/live", timeout=60).status_code == 200
        wait_until(lambda: ask(server).status_code == 200)


class TestTls:
    def test_http_2_and_certificate_renewal(self, status_store: Path, tmp_path: Path) -> None:
        file = make_certificate(tmp_path / "cert.pem")
        with serving(status_store, TLS_CERTIFICATE=str(file)) as server:
            url = server.url("status").replace("http:", "https:")
            command = ["curl", "-sS", "--http2", "--cacert", str(file), "-d", "200", url]
            done = subprocess.run(
                [*command, "-o", "/dev/null", "-w", "%{http_code} %{http_version}"],
                capture_output=True,
                text=True,
                check=True,
            )
            assert done.stdout == "200 2"
            assert talk(server, b"POST / HTTP/1.1\r\nHost: a\r\n\r\n")[:4] != b"HTTP"

            def served() -> str:
                return ssl.get_server_certificate(address(server))

            before = served()
            assert before in file.read_text()
            context = ssl.create_default_context(cafile=str(file))
            connection = http.client.HTTPSConnection(*address(server), context=context, timeout=60)
            for closing in (None, "close"):
                connection.request("POST", "/predictions/status", b"200")
                with connection.getresponse() as response:
                    # The existing connection is told to close, not cut.
                    assert (response.status, response.headers["Connection"]) == (200, closing)
                    response.read()
                if closing is None:
                    make_certificate(file)
                    wait_until(lambda: served() != before)
            assert served() in file.read_text()

    def test_a_malformed_certificate(self, status_store: Path, tmp_path: Path) -> None:
        (tmp_path / "cert.pem").write_text("nothing\n")
        with ServerProcess(status_store, TLS_CERTIFICATE=str(tmp_path / "cert.pem")) as server:
            assert server.wait(60) == 1
            assert server.last_line.startswith("error: HAProxy did not start: ")
            assert "cert.pem" in server.last_line


def test_cors(status_store: Path) -> None:
    with serving(status_store, CORS_ORIGINS="https://a.example,http://b:80") as server:
        preflight = {"Access-Control-Request-Method": "POST"}
        for origin, allowed in (("https://a.example", True), ("https://c.example", False)):
            asked = requests.options(
                server.url("status"), headers=preflight | {"Origin": origin}, timeout=60
            )
            answer = ask(server, headers={"Origin": origin})
            assert answer.status_code == 200
            if allowed:
                assert asked.status_code == 204
                assert "Authorization" in asked.headers["Access-Control-Allow-Headers"]
                assert answer.headers["Access-Control-Allow-Origin"] == origin
                assert answer.headers["Vary"] == "Origin"
            else:
                assert asked.status_code == 405
                assert "Access-Control-Allow-Origin" not in answer.headers


def test_no_origin_is_allowed_by_default(server: ServerProcess) -> None:
    headers = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    response = requests.options(server.url("mnist"), headers=headers, timeout=60)
    assert "Access-Control-Allow-Origin" not in response.headers


class TestFraming:
    """Valid and invalid HTTP that few clients send."""

    def test_bodies_as_curl_sends_them(self, server: ServerProcess, tmp_path: Path) -> None:
        image = str(ROOT / "samples" / "seven.png")
        (tmp_path / "x.json").write_text('{"instances": [[0, 1]]}')
        for options, path, label in (
            (["-d", '{"instances": [[1, 1]]}'], "xor", 0),
            (["-d", f"@{tmp_path}/x.json"], "xor", 1),
            (["--data-binary", f"@{image}"], "mnist", 7),
            (["-F", f"data=@{image}"], "mnist", 7),
            (["-T", image], "mnist", 7),
            (["-H", "Transfer-Encoding: chunked", "--data-binary", f"@{image}"], "mnist", 7),
            (["-H", "Expect: 100-continue", "--data-binary", f"@{image}"], "mnist", 7),
            (["-0", "--data-binary", f"@{image}"], "mnist", 7),
        ):
            done = subprocess.run(
                ["curl", "-sS", *options, server.url(path)], capture_output=True, check=True
            )
            assert json.loads(done.stdout)["predictions"][0]["label"] == label, options

    @pytest.mark.parametrize("length", [(1 << 20) + 1, 20 << 20])
    def test_a_body_that_is_too_large_with_or_without_a_stated_length(
        self, server: ServerProcess, length: int
    ) -> None:
        for body in (b"x" * length, iter([b"x" * 65536] * (length // 65536 + 1))):
            try:
                response = requests.post(server.url("mnist"), data=body, timeout=60)
            except requests.ConnectionError:
                # A client that sends chunks may go on sending after the refusal.
                assert not isinstance(body, bytes)
                continue
            assert response.status_code == 413
            assert response.json()["code"] == 413
            assert "the body is over the limit of 1048576 bytes" in response.json()["message"]

    @pytest.mark.parametrize(
        "content_type",
        [
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=x",
            'multipart/form-data; boundary="',
            "multipart/mixed; boundary=x",
            "multipart/form-data; boundary=" + "x" * 5000,
            "application/x-www-form-urlencoded",
            "APPLICATION/X-WWW-FORM-URLENCODED",
            ";;;",
        ],
    )
    @pytest.mark.parametrize(
        "body", [b"", b"--x", b"--x\r\n\r\n\r\n--x--", b"%%%=&&", b"\0" * 300, b"--x--\r\n"]
    )
    def test_a_content_type_that_does_not_match_the_body(
        self, server: ServerProcess, content_type: str, body: bytes
    ) -> None:
        headers = {"Content-Type": content_type}
        response = requests.post(server.url("mnist"), data=body, headers=headers, timeout=60)
        assert response.status_code in (400, 415), response.text
        assert response.json()["code"] == response.status_code

    @pytest.mark.parametrize(
        "sent",
        [
            b"GARBAGE\r\n\r\n",
            b"POST /predictions/mnist HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
            b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            b"POST /predictions/mnist HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        ],
    )
    def test_malformed_http(self, server: ServerProcess, sent: bytes) -> None:
        """It is refused and the connection closed; the rest is not read as another request."""
        follows = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
        assert talk(server, sent + follows).startswith(b"HTTP/1.1 400 ")
        assert talk(server, sent + follows).count(b"HTTP/1.1") == 1

    def test_a_body_that_never_arrives(self, server: ServerProcess) -> None:
        sent = b"POST /predictions/mnist HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc"
        head, _, body = talk(server, sent).partition(b"\r\n\r\n")
        assert b" 408 " in head.split(b"\r\n")[0]
        assert json.loads(body)["message"] == "the request did not come in time"


def send_part(server: ServerProcess, stack: contextlib.ExitStack, length: int, sent: int) -> None:
    """Have 15 clients send so many bytes of a body, and go on waiting."""
    for _ in range(15):
        client = stack.enter_context(socket.create_connection(address(server)))
        head = f"POST /predictions/slow HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
        client.sendall(head.encode() + b"x" * sent)


class TestAdmission:
    def test_a_slow_sender_holds_no_slot(self, tmp_path: Path) -> None:
        """There are two slots, and thirty clients that have sent half of a small body."""
        foreign(tmp_path, "slow", SLOW_HANDLER.format(seconds=0))
        with serving(tmp_path) as server, contextlib.ExitStack() as stack:
            for length in (100, 10_000):
                send_part(server, stack, length, length // 2)
            for _ in range(5):
                response = requests.post(server.url("slow"), data=b"now", timeout=60)
                assert response.content == b"now"

    def test_slow_senders_of_large_bodies_hold_no_slot_for_small_ones(self, tmp_path: Path) -> None:
        foreign(tmp_path, "slow", SLOW_HANDLER.format(seconds=0))
        with serving(tmp_path) as server, contextlib.ExitStack() as stack:
            send_part(server, stack, 1_000_000, 100_000)
            for _ in range(5):
                response = requests.post(server.url("slow"), data=b"now", timeout=60)
                assert response.content == b"now"

    def test_requests_of_clients_that_left_are_not_computed(self, tmp_path: Path) -> None:
        foreign(tmp_path, "counting", COUNTING_HANDLER, "batchSize: 1\n")
        with (
            serving(tmp_path, QUEUE_TIMEOUT_SECONDS="60") as server,
            ThreadPoolExecutor(2) as pool,
        ):
            url = server.url("counting")
            inside = [pool.submit(requests.post, url, data="x", timeout=60) for _ in range(2)]
            wait_until(lambda: server.metric("haproxy_backend_current_sessions") == 2)
            for _ in range(10):
                with socket.create_connection(address(server)) as client:
                    client.sendall(
                        b"POST /predictions/counting HTTP/1.1\r\nHost: a\r\nContent-Length: 1"
                        b"\r\n\r\nx"
                    )
                    wait_until(lambda: server.metric("serving_waiting_requests") == 1)
                wait_until(lambda: server.metric("serving_waiting_requests") == 0)
            (server.temporary / "logs" / "open").touch()
            assert [future.result().status_code for future in inside] == [200, 200]
            assert server.metric("ts_inference_requests_total") == 2

    def test_health_is_answered_under_overload(self, tmp_path: Path) -> None:
        foreign(tmp_path, "counting", COUNTING_HANDLER, "batchSize: 1\n")
        with (
            serving(tmp_path, QUEUE_TIMEOUT_SECONDS="60") as server,
            ThreadPoolExecutor(40) as pool,
        ):
            url = server.url("counting")
            futures = [pool.submit(requests.post, url, data="x", timeout=60) for _ in range(40)]
            wait_until(lambda: server.metric("serving_waiting_requests") == 38)
            for path in ("/v2/health/live", "/v2/health/ready"):
                assert requests.get(server.inference + path, timeout=5).status_code == 200
            (server.temporary / "logs" / "open").touch()
            assert {future.result().status_code for future in futures} == {200}

    def test_request_timeout(self, tmp_path: Path) -> None:
        foreign(tmp_path, "counting", COUNTING_HANDLER, "batchSize: 1\n")
        with serving(tmp_path, REQUEST_TIMEOUT_SECONDS="0.3") as server:
            response = requests.post(server.url("counting"), data="x", timeout=60)
            assert response.status_code == 504
            assert response.json() == {
                "code": 504,
                "type": "GatewayTimeoutException",
                "message": "no answer within 0.3 s",
            }
            url = f"{server.inference}/v2/models/counting/infer"
            response = requests.post(url, data="x", timeout=60)
            assert response.json()["error"] == "no answer within 0.3 s"


def test_two_versions_at_once(tmp_path: Path) -> None:
    for version in ("2.0", "10.0"):
        handler = VERSION_HANDLER.replace("{version}", version)
        foreign(tmp_path, "m", handler, version=version).rename(tmp_path / f"m-{version}.mar")
    with serving(tmp_path) as server:
        for path, version in (
            ("/predictions/m/2.0", "2.0"),
            ("/predictions/m/10.0", "10.0"),
            ("/predictions/m", "10.0"),
            ("/v1/models/m:predict", "10.0"),
            ("/v2/models/m/infer", "10.0"),
            ("/v2/models/m/versions/2.0/infer", "2.0"),
        ):
            assert requests.post(server.inference + path, data="x", timeout=60).text == version
        refused = requests.post(f"{server.inference}/v2/models/m/versions/3/infer", timeout=60)
        assert refused.status_code == 404
        assert refused.json()["error"] == "model m has no version 3; there are: 10.0, 2.0"


def test_listening_addresses(server: ServerProcess) -> None:
    """The service has two addresses; TorchServe has Unix sockets, and gRPC on loopback."""
    processes = {p.pid: p for p in [psutil.Process(server.process.pid), *server.family()]}
    listening = set()
    for process in processes.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            listening |= {
                (process.name(), connection.laddr)
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            }
    assert {address.ip.rpartition(":")[2] for _, address in listening} == {"127.0.0.1"}
    ports = {address.port for name, address in listening if name != "java"}
    assert ports == {int(url.rpartition(":")[2]) for url in (server.inference, server.telemetry)}


class TestGrpc:
    @pytest.fixture
    def port(self) -> int:
        return free_ports(1)[0]

    def call(self, port: int, metadata: list[tuple[str, str]] | None = None) -> bytes:
        """TorchServe's Ping, without generated code."""
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            ping = channel.unary_unary(
                "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Ping"
            )
            answer: bytes = ping(b"", timeout=60, metadata=metadata)
            return answer

    def test_through_the_door(self, status_store: Path, port: int, tmp_path: Path) -> None:
        tokens = tmp_path / "tokens"
        tokens.write_text(hashlib.sha256(b"secret").hexdigest())
        environment = {"GRPC_ADDRESS": f"http://127.0.0.1:{port}", "TOKEN_FILE": str(tokens)}
        with serving(status_store, **environment):
            assert b"Healthy" in self.call(port, [("authorization", "Bearer secret")])
            with pytest.raises(grpc.RpcError) as refused:
                self.call(port, [("authorization", "Bearer wrong")])
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that has just been started."""
    foreign(tmp_path, "slow", SLOW_HANDLER.format(seconds=0))
    with ServerProcess(tmp_path) as server:
        yield server


def test_requests_while_the_models_load(waiting: ServerProcess) -> None:
    def answer() -> list[requests.Response]:
        with contextlib.suppress(requests.ConnectionError):
            return [requests.post(waiting.url("slow"), data="x", timeout=60)]
        return []

    (first,) = wait_until(answer)
    assert first.status_code == 503
    assert first.headers["Retry-After"] == "1"
    assert first.json()["message"] == "the models are loading"
    live, ready = (
        requests.get(f"{waiting.inference}/v2/health/{what}", timeout=60)
        for what in ("live", "ready")
    )
    assert (live.status_code, ready.status_code) == (200, 503)
    waiting.wait_until_ready()
    assert requests.post(waiting.url("slow"), data="x", timeout=60).text == "x"
