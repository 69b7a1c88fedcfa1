import contextlib
import hashlib
import ipaddress
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from loadtest.servers import free_ports
from server import control
from server.control import ControlServer, clients_app, operators_app
from server.settings import Address
from server.supervisor import ServerError, bind, check_distinct
from server.unix import fetch


class Stub:
    """A service whose state the test sets."""

    ready = live = 200
    reloads = 0

    def liveness(self) -> tuple[int, dict[str, Any]]:
        return self.live, {"status": "any"}

    def readiness(self) -> tuple[int, dict[str, Any]]:
        return self.ready, {"status": "any"}

    def metrics(self) -> bytes:
        return b"up 1\n"

    def reload(self) -> tuple[int, dict[str, Any]]:
        self.reloads += 1
        return 409, {"status": "refused"}


@contextlib.contextmanager
def running(stub: Stub, directory: Path, tokens: Path | None = None) -> Iterator[str]:
    """Run both apps: yield the URL of the operators' one; the clients' one is at `control.sock`."""
    with (
        bind(Address("127.0.0.1", free_ports(1)[0], "TELEMETRY_ADDRESS")) as listener,
        socket.socket(socket.AF_UNIX) as local,
    ):
        local.bind(str(directory / "control.sock"))
        local.listen()
        server = ControlServer(
            [(operators_app(stub, tokens), listener), (clients_app(stub), local)]
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


def test_clients_see_health_and_nothing_of_operators(tmp_path: Path) -> None:
    stub = Stub()
    with running(stub, tmp_path):

        def get(path: str) -> tuple[int, bytes]:
            return fetch(tmp_path / "control.sock", "GET", path, None, timeout=10)

        assert get("/v2/health/live") == (200, b'{"live":true}')
        assert get("/v2/health/ready") == (200, b'{"ready":true}')
        stub.ready = 503
        assert get("/v2/health/ready") == (503, b'{"ready":false}')
        for path in ("/metrics", "/livez", "/reload"):
            assert get(path)[0] == 404
        assert b'"error":"there is nothing at /v2/nothing' in get("/v2/nothing")[1]


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
