import contextlib
import hashlib
import ipaddress
import json
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

from loadtest.servers import free_ports
from server import control
from server.control import ControlServer, clients_app, operators_app
from server.settings import Address
from server.store import Archive
from server.supervisor import ServerError, bind, check_distinct
from server.watcher import ModelState
from tests.untrained import make_card


def model(
    name: str, version: str = "1.0", reason: str | None = None, *, is_foreign: bool = False
) -> ModelState:
    card = None if is_foreign else make_card(name, version=version)
    return ModelState(Archive(Path(f"{name}.mar"), name, version, card, 1, ""), reason)


class Stub:
    """A service whose state the test sets."""

    ready = live = 200
    reloads = 0
    served: Sequence[ModelState] = (
        model("mnist", "2.0", "0 of 1 workers ready"),
        model("mnist"),
        model("xor"),
    )

    def liveness(self) -> tuple[int, dict[str, Any]]:
        return self.live, {"status": "any"}

    def readiness(self) -> tuple[int, dict[str, Any]]:
        return self.ready, {"status": "any"}

    def models(self) -> list[ModelState]:
        return list(self.served)

    def metrics(self) -> bytes:
        return b"up 1\n"

    def reload(self) -> tuple[int, dict[str, Any]]:
        self.reloads += 1
        return 409, {"status": "refused"}


@contextlib.contextmanager
def running(
    stub: Stub, directory: Path, tokens: Path | None = None, host: str = "127.0.0.1"
) -> Iterator[str]:
    """Run both apps: yield the URL of the operators' one; the clients' one is at `control.sock`."""
    with (
        bind(Address(host, free_ports(1)[0], "TELEMETRY_ADDRESS")) as listener,
        socket.socket(socket.AF_UNIX) as local,
    ):
        local.bind(str(directory / "control.sock"))
        local.listen()
        server = ControlServer(
            [(operators_app(stub, tokens), listener), (clients_app(stub, has_tokens=False), local)]
        )
        server.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.stop()


def test_probes_and_scrapes(tmp_path: Path) -> None:
    stub = Stub()
    stub.live = 503
    with running(stub, tmp_path) as url:
        for path in ("/livez", "/livez?verbose"):
            response = requests.get(url + path, timeout=10)
            assert response.status_code == 503
            assert response.json() == {"status": "any"}
            assert response.headers["Content-Type"] == "application/json"
        head = requests.head(url + "/livez", timeout=10)
        assert (head.status_code, head.content) == (503, b"")
        scrape = requests.get(url + "/metrics", timeout=10)
        assert scrape.text == "up 1\n"
        assert scrape.headers["Content-Type"].startswith("text/plain; version=0.0.4")


def test_unknown_paths_and_methods(tmp_path: Path) -> None:
    with running(Stub(), tmp_path) as url:
        response = requests.get(url + "/healthz", timeout=10)
        assert response.status_code == 404
        assert response.json()["message"] == (
            "there is nothing at /healthz; there are: /livez, /metrics, /readyz, /reload"
        )
        assert requests.get(url + "/reload", timeout=10).status_code == 405
        assert requests.post(url + "/metrics", timeout=10).json()["code"] == 405


class TestClients:
    @pytest.fixture
    def stub(self) -> Stub:
        return Stub()

    @pytest.fixture
    def client(self, stub: Stub, tmp_path: Path) -> Iterator[httpx.Client]:
        with running(stub, tmp_path):
            transport = httpx.HTTPTransport(uds=str(tmp_path / "control.sock"))
            with httpx.Client(transport=transport, base_url="http://door", timeout=10) as client:
                yield client

    def test_health(self, stub: Stub, client: httpx.Client) -> None:
        for what in ("live", "ready"):
            for status in (200, 503):
                setattr(stub, what, status)
                response = client.get(f"/v2/health/{what}")
                assert response.status_code == status
                assert response.json() == {what: status == 200}

    def test_nothing_of_operators(self, client: httpx.Client) -> None:
        for path in ("/metrics", "/livez", "/reload"):
            assert client.get(path).status_code == 404

    def test_server_metadata(self, client: httpx.Client) -> None:
        for path in ("/v2", "/v2/"):
            assert client.get(path).json() == {
                "name": "model-server",
                "version": "0.1.0",
                "extensions": ["binary_tensor_data"],
            }

    def test_model_metadata(self, client: httpx.Client) -> None:
        assert client.get("/v2/models/xor").json() == {
            "name": "xor",
            "versions": ["1.0"],
            "platform": "pytorch_torchscript",
            "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 2]}],
            "outputs": [
                {"name": "label", "datatype": "INT64", "shape": [-1]},
                {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]},
            ],
        }
        mnist = client.get("/v2/models/mnist/versions/1.0").json()
        assert mnist["versions"] == ["2.0", "1.0"]
        assert mnist["inputs"] == [{"name": "input", "datatype": "UINT8", "shape": [-1, 28, 28]}]
        assert mnist["outputs"][1]["shape"] == [-1, 10]

    def test_metadata_of_another_team_s_model(self, stub: Stub, client: httpx.Client) -> None:
        stub.served = [model("theirs", is_foreign=True)]
        assert client.get("/v2/models/theirs").json() == {
            "name": "theirs",
            "versions": ["1.0"],
            "platform": "torchserve_mar",
            "inputs": [],
            "outputs": [],
        }

    @pytest.mark.parametrize("path", ["/v2/models/{}/ready", "/v1/models/{}"])
    def test_readiness_of_each_model(self, client: httpx.Client, path: str) -> None:
        response = client.get(path.format("xor"))
        assert (response.status_code, response.json()) == (200, {"name": "xor", "ready": True})
        response = client.get(path.format("mnist"))
        assert response.status_code == 503
        assert response.json() == {
            "name": "mnist",
            "ready": False,
            "reason": "0 of 1 workers ready",
        }

    def test_readiness_of_each_version(self, client: httpx.Client) -> None:
        for version, status in (("1.0", 200), ("2.0", 503)):
            response = client.get(f"/v2/models/mnist/versions/{version}/ready")
            assert response.status_code == status

    def test_the_models_of_v1(self, client: httpx.Client) -> None:
        assert client.get("/v1/models").json() == {"models": ["mnist", "xor"]}

    @pytest.mark.parametrize(
        ("path", "key", "message"),
        [
            ("/v2/models/a", "error", "there is no model a; there are: mnist, xor"),
            ("/v2/models/a/ready", "error", "there is no model a; there are: mnist, xor"),
            ("/v1/models/a", "message", "there is no model a; there are: mnist, xor"),
            (
                "/v2/models/mnist/versions/3/ready",
                "error",
                "model mnist has no version 3; there are: 2.0, 1.0",
            ),
            ("/v2/nothing", "error", "there is nothing at /v2/nothing; /docs shows what there is"),
            ("/v2x", "message", "there is nothing at /v2x; /docs shows what there is"),
            ("/docs/", "message", "there is nothing at /docs/; /docs shows what there is"),
        ],
    )
    def test_what_there_is_not(
        self, client: httpx.Client, path: str, key: str, message: str
    ) -> None:
        response = client.get(path)
        assert response.status_code == 404
        document = response.json()
        assert document.pop("type").endswith("Exception")
        assert document == {"code": 404, key: message}

    def test_a_name_of_any_length_makes_a_short_error(self, client: httpx.Client) -> None:
        for path in ("/v2/models/{}", "/v2/models/mnist/versions/{}", "/{}"):
            response = client.get(path.format("x" * 5000))
            assert response.status_code == 404
            assert len(response.content) < 400

    def test_methods(self, client: httpx.Client) -> None:
        response = client.post("/v2/models/mnist")
        assert response.status_code == 405
        assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD"}
        assert response.json()["error"].startswith("expected ")
        assert client.head("/v2/models/mnist").status_code == 200

    def test_the_root_is_v1_s_liveness_but_for_browsers(
        self, stub: Stub, client: httpx.Client
    ) -> None:
        for accept in ("application/json", "*/*"):
            response = client.get("/", headers={"Accept": accept})
            assert (response.status_code, response.json()) == (200, {"status": "alive"})
            assert response.headers["Vary"] == "Accept"
        browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
        response = client.get("/", headers=browser)
        assert response.headers["Content-Type"].startswith("text/html")
        assert response.headers["Vary"] == "Accept"
        stub.live = 503
        response = client.get("/", headers={"Accept": "application/json"})
        assert (response.status_code, response.json()) == (503, {"status": "dead"})

    def test_every_answer_is_confined(self, client: httpx.Client) -> None:
        for path in ("/", "/v2", "/nothing", "/openapi.json", "/docs", "/docs/swagger-ui.js"):
            headers = client.get(path).headers
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"
            policy = headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'")
            assert "unsafe" not in policy
            assert "http" not in policy

    def test_the_docs_and_all_that_they_load(self, client: httpx.Client) -> None:
        page = client.get("/docs")
        assert page.headers["Content-Type"].startswith("text/html")
        loaded = re.findall(r'(?:src|href)="(/[^"]*)"', page.text)
        assert len(loaded) == 3
        for path in loaded:
            response = client.get(path)
            assert response.status_code == 200
            kind = "css" if path.endswith(".css") else "javascript"
            assert response.headers["Content-Type"].startswith(f"text/{kind}")
        assert "//" not in re.sub(r"//.*", "", client.get("/docs/start.js").text, count=1)

    def test_the_description_follows_a_reload(self, stub: Stub, client: httpx.Client) -> None:
        assert "/predictions/mnist/2.0" in client.get("/openapi.json").json()["paths"]
        stub.served = [replace(model("xor"), archive=replace(model("xor").archive, sha256="1"))]
        paths = client.get("/openapi.json").json()["paths"]
        assert "/predictions/xor" in paths
        assert "/predictions/mnist" not in paths

    def test_a_defect_is_said_in_the_form_of_errors(
        self, stub: Stub, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stub, "models", lambda: 1 / 0)
        for path, key in (("/v2/models/mnist", "error"), ("/v1/models/mnist", "message")):
            response = client.get(path, headers={"Connection": "close"})
            assert response.status_code == 500
            assert response.json()[key] == "the server failed on this request"
            assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_a_reload_from_loopback_or_with_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub()
    tokens = tmp_path / "tokens"
    tokens.write_text(hashlib.sha256(b"secret").hexdigest() + " ci\n")
    with running(stub, tmp_path, tokens) as url:
        assert requests.post(url + "/reload", timeout=10).status_code == 409
        assert stub.reloads == 1
        # A client that is not on loopback.
        monkeypatch.setattr(ipaddress.IPv4Address, "is_loopback", False)
        refused = requests.post(url + "/reload", timeout=10)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        headers = {"Authorization": "Bearer wrong"}
        assert requests.post(url + "/reload", headers=headers, timeout=10).status_code == 401
        assert stub.reloads == 1
        headers = {"Authorization": "Bearer secret"}
        assert requests.post(url + "/reload", headers=headers, timeout=10).status_code == 409
        assert stub.reloads == 2


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\n", b"complete"])
def test_slow_headers_are_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(control, "_HEADER_SECONDS", 0.2)
    with running(Stub(), tmp_path) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            if sent == b"complete":  # and then half of another request
                client.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
                answer = b""
                while not answer.endswith(b"}"):
                    answer += client.recv(1 << 16)
                assert answer.startswith(b"HTTP/1.1 200")
                sent = b"GET /livez HTTP/1.1\r\n"
            client.sendall(sent)
            assert client.recv(1 << 16) == b""


def test_what_is_not_http_is_refused_in_the_form_of_errors(tmp_path: Path) -> None:
    with running(Stub(), tmp_path) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\nX: a\x0bb\r\n\r\n")
            answer = b""
            while part := client.recv(1 << 16):
                answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body) == {
        "code": 400,
        "type": "BadRequestException",
        "message": "the request is malformed: Invalid HTTP request received.",
    }


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_that_does_not_start() -> None:
    class Broken:
        started = should_exit = False

        async def serve(self) -> None:
            raise OSError("no such socket")

    with pytest.raises(RuntimeError, match="the control app did not start"):
        ControlServer([], [Broken()]).start()


def test_a_listener_of_both_families_knows_loopback(tmp_path: Path) -> None:
    stub = Stub()
    with running(stub, tmp_path, host="::") as url:
        for each in (url, url.replace("127.0.0.1", "[::1]")):
            assert requests.post(f"{each}/reload", timeout=10).status_code == 409
    assert stub.reloads == 2


def test_two_listeners_at_one_address() -> None:
    addresses = [Address("127.0.0.1", 80, "TELEMETRY_ADDRESS"), Address("127.0.0.1", 80, "OTHER")]
    with pytest.raises(ServerError, match=r"TELEMETRY_ADDRESS and OTHER are both 127\.0\.0\.1:80"):
        check_distinct(addresses)


def test_an_address_that_cannot_be_used() -> None:
    with pytest.raises(ServerError, match=r"192\.0\.2\.1:80 cannot be used: .*OTHER moves it"):
        bind(Address("192.0.2.1", 80, "OTHER"))
    with bind(Address("127.0.0.1", free_ports(1)[0], "A")) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1], "OTHER")
        with pytest.raises(ServerError, match="is in use; OTHER moves it"):
            bind(address)


def test_a_slow_report_does_not_block_others(tmp_path: Path) -> None:
    """One that takes long keeps nobody else waiting."""

    answered = threading.Event()

    class Slow(Stub):
        def readiness(self) -> tuple[int, dict[str, Any]]:
            return (200 if answered.wait(30) else 500), {}

    with (
        running(Slow(), tmp_path) as url,
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30) as slow,
    ):
        slow.sendall(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert requests.get(url + "/livez", timeout=10).status_code == 200
        answered.set()
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 200")
