"""The peers of the benchmark: each that is installed answers, and what is measured of them."""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import requests

from bench import faults, open_loop, side_by_side
from bench.errors import BenchError
from bench.peers import report
from bench.peers.catalogue import PEERS, SERVICE, PeerServer, build
from bench.servers import request_to, running
from bench.side_by_side import CLOSED, FAULTS, OPEN, OTHER_WORKERS, Part, Results
from bench.wrk import Request
from handler.images import Picture, decode_plain
from tests.load.test_bench import SAMPLE
from tests.load.toy_server import Server

CHEAP = "starlette-torchscript"


@pytest.mark.parametrize("name", PEERS)
def test_answers_the_sample_as_this_service_does(store: Path, tmp_path: Path, name: str) -> None:
    """One that is not installed is skipped; what the cheap one needs, this service has."""
    peer = PEERS[name]
    if not peer.is_installed:
        pytest.skip(f"`make bench-peers` installs {peer.title}")
    server = build(name, store, tmp_path, workers=1)
    with running(server) as seconds:
        request = request_to(server)
        url = f"{server.inference}{request.path}"
        answer = requests.post(url, request.body, headers=request.headers, timeout=30)
    assert seconds > 0
    assert answer.status_code == 200
    if name != "null":
        assert _label(answer.json()) == 7


def _label(document: Any) -> object:
    """Of this service's answer, of that in a list, of Open Inference's, or of TorchServe's."""
    match document:
        case [one]:
            return _label(one)
        case {"predictions": [{"label": label}]}:
            return label
        case {"outputs": [{"name": "label", "data": [label]}, *_]}:
            return label
        case {"7": float()}:
            return int(max(document, key=document.__getitem__))
    raise AssertionError(document)


class TestCheapPeer:
    def test_one_bad_picture_fails_alone(self, store: Path, tmp_path: Path) -> None:
        server = build(CHEAP, store, tmp_path, workers=1)
        with running(server):
            found = faults.bad(server, PEERS[CHEAP])
        assert found == {"neighbours": 31 * 8, "failed": 0, "bad": {"400": 8}}

    def test_server_that_ends_is_an_error(self, tmp_path: Path) -> None:
        """There is no network in the directory."""
        server = PeerServer(PEERS[CHEAP], tmp_path, workers=1)
        with pytest.raises(BenchError, match="the server ended"), running(server):
            pass


class Refusing(BaseHTTPRequestHandler):
    """Answers with 200, and every `refused`th request with 503."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    refused = 1 << 30
    seconds = 0.0
    answered = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.seconds)
        Refusing.answered += 1
        self.send_response(503 if self.answered % self.refused == 0 else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


class TestOpenLoop:
    @pytest.fixture
    def url(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        monkeypatch.setattr(Refusing, "answered", 0)
        with Server(("127.0.0.1", 0), Refusing) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_address[1]}"
            server.shutdown()
            thread.join()

    def test_every_request_is_counted(self, url: str) -> None:
        latencies, lags, failed = open_loop.Generator(url, Request()).run(50, 2.0, seed=1)
        assert len(latencies) + failed == len(lags) == Refusing.answered
        assert 60 < len(latencies) < 150
        assert failed == 0

    def test_an_error_is_no_answer(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Refusing, "refused", 5)
        latencies, _, failed = open_loop.Generator(url, Request()).run(50, 2.0, seed=1)
        assert failed == Refusing.answered // 5
        assert len(latencies) == Refusing.answered - failed

    def test_latency_counts_from_when_a_request_was_to_be_sent(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With one connection, each request waits for those before it."""
        monkeypatch.setattr(Refusing, "seconds", 0.05)
        monkeypatch.setattr(open_loop, "_CONNECTIONS", 1)
        latencies, _, _ = open_loop.Generator(url, Request()).run(40, 1.0, seed=1)
        assert max(latencies) > 0.3

    def test_server_that_never_answers(self) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            latencies, lags, failed = open_loop.Generator(url, Request()).run(20, 0.5, seed=1)
        assert latencies == []
        assert failed == len(lags) > 0


def test_large_picture_is_one_for_every_decoder() -> None:
    body = faults.large_picture(1 << 20)
    assert len(body) == 1 << 20
    assert Picture(body).decode() == decode_plain(Request().body)


def test_parts_are_measured_once(tmp_path: Path) -> None:
    file = tmp_path / "results" / "peers.json"
    todo = [*side_by_side.parts(["fastapi", CHEAP], rounds=2, open_rounds=1)]
    assert todo[:4] == [
        Part(CLOSED, "fastapi", 1),
        Part(OPEN, "fastapi", 1),
        Part(CLOSED, CHEAP, 1),
        Part(OPEN, CHEAP, 1),
    ]
    assert Part(FAULTS, "service", 1) in todo
    results = Results(file)
    results.begin({"when": "now"})
    results.add(todo[0], {"memory": {"one": 1 / 3}})
    again = Results(file)
    assert [part for part in todo if not again.has(part)] == todo[1:]
    assert again.document["parts"][0]["memory"] == {"one": 0.33333}
    again.forget(todo[:1])
    assert again.document == {"runs": [], "parts": []}


def test_report(tmp_path: Path) -> None:
    """This service answers half as many requests as FastAPI, of which a round was disturbed."""
    title = PEERS["fastapi"].title

    def sample(server: str, round_: int, rate: float, connections: int, **more: object) -> Any:
        changes = {"server": server, "round": round_, "rate": rate, "connections": connections}
        return asdict(replace(SAMPLE, **changes | more))  # type: ignore[arg-type]

    closed = [
        {
            "kind": CLOSED,
            "peer": "fastapi",
            "round": n,
            "start": {"peer": 2.0, "service": 9.0},
            "memory": {SERVICE.title: 800.0, title: 300.0},
            "samples": [
                sample(server, n, rate * n, connections, disturbed=n == 3 and server == title)
                for connections in (1, 8, 32, 128)
                for server, rate in ((SERVICE.title, 100.0), (title, 200.0))
            ],
        }
        for n in (1, 2, 3)
    ]
    probe = {"rate": 90.0, "p50": 2.0, "p99": 20.0, "why": ""}
    open_ = {name: {"rate": 90.0, "probes": [probe]} for name in (SERVICE.title, title)}
    found = {
        "form": {"status": 200},
        "bad": {"neighbours": 248, "failed": 3, "bad": {"400": 8}},
        "killed": {"failed": None},
        "large": {"statuses": {"200": 900}, "seconds": 4.0, "ended": True},
        "stopped": {"sent": 50, "failed": 2, "exit_code": 0, "seconds": 1.0},
    }
    document: dict[str, Any] = {
        "runs": [{"when": "now", "command": "this"}],
        "parts": [
            *closed,
            {"kind": OPEN, "peer": "fastapi", "round": 1, "open": open_},
            {"kind": FAULTS, "peer": "fastapi", "round": 1, "faults": found},
            {"kind": OTHER_WORKERS, "peer": "ray", "round": 1, "error": "at /a/b/c.py\nit ended"},
        ],
    }
    report.write(document, tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "Of 24 measurements 4 were disturbed" in text
    assert f"- {title}: 0.50 times its requests/s, 32 connections" in text
    assert f"| {title} | 0.50 (0.50 to 0.50), n = 2; ≥ 2 MISSED |" in text
    assert "1.00 (1.00 to 1.00), n = 1; ≥ 3 MISSED |" in text
    assert "| 3 of 248; itself 400 | 2 of 50; exit code 0 in 1.0 s | one process | " in text
    assert "200: 900 in 4 s; **ended**" in text
    assert "- Ray Serve, other workers: it ended" in text
    report.write({**document, "parts": document["parts"][-2:]}, tmp_path / "without loads")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- peers -->\nold\n<!-- end of peers -->\nafter\n")
    report.write_readme(document, readme)
    lines = readme.read_text().splitlines()
    assert f"| {title} | 300 | 300 | 1 | 90 | 300 |" in lines
    assert (lines[0], lines[-1], "old" in lines) == ("before", "after", False)
    for plot in ("connections", "open"):
        assert (tmp_path / "results" / f"{plot}.svg").read_text().startswith("<svg")
