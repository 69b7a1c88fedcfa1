"""The life of a real server: start-up, readiness, draining, shutdown."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from bench.servers import PlainTorchServe
from loadtest.servers import wait_until
from tests.archives import DYING_HANDLER, FAILING_HANDLER, SLOW_HANDLER, altered, foreign
from tests.serving import ROOT, ServerProcess, serving


@pytest.fixture
def slow_store(tmp_path: Path) -> Path:
    """A store with a model that takes half a second for a batch of up to four."""
    handler = SLOW_HANDLER.format(seconds=0.5)
    foreign(tmp_path, "slow", handler, "batchSize: 4\nmaxBatchDelay: 50\n")
    return tmp_path


def send(server: ServerProcess, count: int, pool: ThreadPoolExecutor) -> list[Future[int]]:
    """Send requests; return once the server has accepted all and answered none."""
    before = server.accepted()

    def one(index: int) -> int:
        response = requests.post(server.url("slow"), data=f"{index}", timeout=60)
        assert response.text == f"{index}"
        return response.status_code

    futures = [pool.submit(one, index) for index in range(count)]
    wait_until(lambda: server.accepted() == before + count)
    return futures


class TestReadiness:
    def test_ready_only_when_every_model_has_answered(self, store: Path) -> None:
        seen: list[tuple[int, str]] = []
        with ServerProcess(store, "mnist", "xor") as server:

            def look() -> bool:
                assert server.process.poll() is None, server.output
                seen.append(server.probe("/readyz"))
                if seen[-1][0]:
                    assert server.probe("/livez")[0] == 200
                return seen[-1][0] == 200

            wait_until(look)
            assert {code for code, _ in seen} <= {0, 503, 200}
            reasons = [
                model["reason"]
                for code, body in seen
                if code == 503
                for model in json.loads(body)["models"].values()
                if not model["ready"]
            ]
            assert "TorchServe is not answering" in reasons
            assert "0 of 1 workers ready" in reasons
            report = json.loads(seen[-1][1])
            assert report["status"] == "ready"
            assert set(report["models"]) == {"mnist", "xor"}
            for model, body in (
                ("mnist", (ROOT / "samples/seven.png").read_bytes()),
                ("xor", b'{"instances": [[1, 1]]}'),
            ):
                assert (
                    requests.post(
                        server.url(model), data=body, timeout=60, headers={"Content-Type": "a/b"}
                    ).status_code
                    == 200
                )

    def test_a_gpu_that_is_required_and_not_there(self, store: Path) -> None:
        with ServerProcess(store, "xor", REQUIRE_GPU="true") as server:
            reason = "a GPU is required (REQUIRE_GPU), and it computes on the CPU: "
            wait_until(lambda: reason in server.probe("/readyz")[1])
            assert server.probe("/readyz")[0] == 503
            assert server.probe("/livez")[0] == 200
            name = 'serving_gpu_missing{model="xor",version="1.0"} 1.0'
            assert name in server.probe("/metrics")[1]
            assert f"model xor: {reason}" in server.output

    def test_a_killed_worker_is_noticed_and_restarted(self, store: Path) -> None:
        with serving(store, "xor") as server:
            (worker,) = [p for p in server.family() if p.name().startswith("python")]
            worker.kill()
            wait_until(lambda: server.probe("/readyz")[0] == 503)
            assert server.probe("/livez")[0] == 200
            server.wait_until_ready()
            response = requests.post(server.url("xor"), json={"instances": [[0, 1]]}, timeout=60)
            assert response.json()["predictions"][0]["label"] == 1

    def test_liveness_fails_once_restarts_have_failed(self, tmp_path: Path) -> None:
        foreign(tmp_path, "dying", DYING_HANDLER, "maxRetryTimeoutInSec: 1\n")
        with serving(tmp_path) as server:
            assert server.probe("/livez")[0] == 200
            response = requests.post(server.url("dying"), data="now", timeout=60)
            assert response.status_code in (503, 504)
            # TorchServe is restarted five times, and its worker fails to load each time.
            wait_until(lambda: server.probe("/livez")[0] == 503, timeout=120)
            assert "times in a row" in server.probe("/livez")[1]
            assert server.probe("/readyz")[0] == 503
            assert "TorchServe did not start: model dying failed to load" in server.output

    def test_only_overload_is_503(self, tmp_path: Path) -> None:
        foreign(tmp_path, "slow", SLOW_HANDLER.format(seconds=1))
        with (
            serving(tmp_path) as server,
            ThreadPoolExecutor(12) as pool,
        ):
            post = requests.post
            answers = list(pool.map(lambda i: post(server.url("slow"), data=f"{i}"), range(12)))
            codes = [answer.status_code for answer in answers]
            assert set(codes) == {200, 503}
            refused = answers[codes.index(503)].json()
            assert refused["code"] == 503
            assert refused["type"] == "ServiceUnavailableException"
            assert "waited for its turn for 0.5 s" in refused["message"]
            assert answers[codes.index(503)].headers["Retry-After"] == "1"
            assert server.metric("serving_refused_total", model="slow") == codes.count(503)

    def test_unknown_path(self, server: ServerProcess) -> None:
        code, body = server.probe("/healthz")
        assert code == 404
        assert "/readyz" in body


class TestStopping:
    def test_requests_in_flight_and_during_the_grace_are_answered(self, slow_store: Path) -> None:
        with (
            serving(slow_store, DRAIN_GRACE_SECONDS="4", QUEUE_TIMEOUT_SECONDS="30") as server,
            ThreadPoolExecutor(32) as pool,
        ):
            futures = send(server, 20, pool)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "draining" in server.probe("/readyz")[1])
            assert server.probe("/readyz")[0] == 503
            assert server.probe("/livez")[0] == 200
            late = send(server, 1, pool)
            assert [future.result() for future in futures + late] == [200] * 21
            assert server.wait() == 0
            assert server.last_line == "stopped: every request was answered (21)"
            assert server.family() == []
            left = {path.name for path in server.temporary.iterdir()}
            assert left <= {"output", "logs"}

    def test_a_request_in_the_worker_is_awaited(self, tmp_path: Path) -> None:
        foreign(tmp_path, "slow", SLOW_HANDLER.format(seconds=3))
        with (
            serving(tmp_path, DRAIN_GRACE_SECONDS="0") as server,
            ThreadPoolExecutor(1) as pool,
        ):
            (future,) = send(server, 1, pool)
            server.process.send_signal(signal.SIGTERM)
            assert future.result() == 200
            assert server.wait() == 0

    def test_ctrl_c_has_no_grace(self, store: Path) -> None:
        with serving(store, "xor", DRAIN_GRACE_SECONDS="50") as server:
            server.process.send_signal(signal.SIGINT)
            assert server.wait(30) == 0
            assert server.family() == []

    def test_a_second_signal_stops_at_once(self, tmp_path: Path) -> None:
        foreign(tmp_path, "slow", SLOW_HANDLER.format(seconds=50))
        with (
            serving(tmp_path, DRAIN_GRACE_SECONDS="50") as server,
            ThreadPoolExecutor(32) as pool,
        ):
            futures = send(server, 20, pool)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: server.probe("/readyz")[0] == 503)
            server.process.send_signal(signal.SIGTERM)
            assert server.wait(30) == 128 + signal.SIGTERM
            assert server.family() == []
            assert all(future.exception() for future in futures)

    def test_a_drain_that_takes_too_long_is_a_failure(self, tmp_path: Path) -> None:
        foreign(tmp_path, "slow", SLOW_HANDLER.format(seconds=30))
        with (
            serving(tmp_path, DRAIN_GRACE_SECONDS="0", DRAIN_TIMEOUT_SECONDS="1") as server,
            ThreadPoolExecutor(1) as pool,
        ):
            (future,) = send(server, 1, pool)
            server.process.send_signal(signal.SIGTERM)
            assert server.wait(30) == 1
            assert "requests were still in flight 1 s after the grace" in server.last_line
            assert future.exception()

    def test_a_signal_during_the_start(self, store: Path) -> None:
        with ServerProcess(store, "xor") as server:
            wait_until(lambda: server.probe("/livez")[0] == 200)
            server.process.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0

    def test_a_killed_server_leaves_no_process(self, store: Path) -> None:
        with serving(store, "xor") as server:
            server.process.kill()
            wait_until(lambda: not server.family())

    def test_restart_on_the_same_ports(self, store: Path) -> None:
        with serving(store, "xor") as first:
            addresses = first.addresses
        with serving(store, "xor", **addresses) as second:
            response = requests.post(second.url("xor"), json={"instances": [[1, 0]]}, timeout=60)
            assert response.status_code == 200


class TestFailingToStart:
    """One clear line, exit code 1, and nothing left running."""

    def fails(self, store: Path, *models: str, **environment: str) -> str:
        with ServerProcess(store, *models, **environment) as server:
            code = server.wait(60)
            assert code == 1, server.output
            assert server.family() == []
            assert server.last_line.startswith("error: "), server.output
            return server.last_line

    def test_a_port_in_use(self, store: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            for variable in ("INFERENCE_ADDRESS", "TELEMETRY_ADDRESS", "GRPC_ADDRESS"):
                line = self.fails(store, "xor", **{variable: f"http://127.0.0.1:{port}"})
                assert line == f"error: address 127.0.0.1:{port} is in use; {variable} moves it"

    def test_an_archive_that_is_missing(self, store: Path) -> None:
        line = self.fails(store, "nothing")
        assert line.endswith("nothing.mar is missing: run `make train` to build it")

    def test_an_empty_store(self, tmp_path: Path) -> None:
        assert "holds no archive: run `make train`" in self.fails(tmp_path)

    def test_a_truncated_archive(self, store: Path, tmp_path: Path) -> None:
        content = (store / "xor.mar").read_bytes()
        (tmp_path / "xor.mar").write_bytes(content[: len(content) // 2])
        assert "xor.mar is corrupt: File is not a zip file" in self.fails(tmp_path)

    def test_a_damaged_archive(self, store: Path, tmp_path: Path) -> None:
        content = bytearray((store / "mnist.mar").read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / "mnist.mar").write_bytes(content)
        assert "mnist.mar is corrupt: " in self.fails(tmp_path)

    def test_an_exchanged_torchscript(self, store: Path, tmp_path: Path) -> None:
        altered(store / "xor.mar", tmp_path / "xor.mar", {"model.pt": b"another"})
        line = self.fails(tmp_path)
        assert "model xor failed to load: ValueError: model.pt of model xor 1.0 has SHA-256" in line
        assert "the archive was altered or damaged" in line

    def test_a_worker_that_fails_to_load(self, tmp_path: Path) -> None:
        foreign(tmp_path, "broken", FAILING_HANDLER)
        line = self.fails(tmp_path)
        assert line == (
            "error: model broken failed to load: LookupError: the weights are on holiday"
        )

    def test_a_model_that_does_not_load_in_time(self, tmp_path: Path) -> None:
        slow_to_load = SLOW_HANDLER.format(seconds=60).replace("return None", "time.sleep(60)")
        foreign(tmp_path, "slow", slow_to_load)
        line = self.fails(tmp_path, TS_DEFAULT_STARTUP_TIMEOUT="6")
        assert "not ready within 6 s (TS_DEFAULT_STARTUP_TIMEOUT): slow: " in line

    def test_unknown_jvm_options(self, store: Path) -> None:
        line = self.fails(store, "xor", TS_VMARGS="-XX:+NoSuchOption")
        assert "TorchServe ended by itself with exit code 1: " in line
        assert "NoSuchOption" in line

    def test_a_missing_java(self, store: Path, tmp_path: Path) -> None:
        line = self.fails(store, "xor", TORCHSERVE_JAVA_HOME=str(tmp_path))
        assert "TORCHSERVE_JAVA_HOME is set, but there is no" in line

    def test_a_malformed_address(self, store: Path) -> None:
        line = self.fails(store, "xor", TELEMETRY_ADDRESS="8083")
        assert "telemetry_address (TELEMETRY_ADDRESS): expected http://HOST:PORT" in line

    def test_wrong_usage(self) -> None:
        command = [sys.executable, "-m", "server", "--port=1"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert "unrecognized arguments: --port=1" in result.stderr


def test_served_by_plain_torchserve_without_this_repository(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive is self-contained: its own handler code answers."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    archive = Path(shutil.copy(store / "mnist.mar", tmp_path))
    # Otherwise TorchServe's defaults, with JSON decoded before the handler sees it.
    with PlainTorchServe(archive, {"default_workers_per_model": "1"}) as server:
        url = f"{server.inference}/predictions/mnist"
        image = (ROOT / "samples" / "seven.png").read_bytes()
        response = requests.post(url, data=image, timeout=30)
        assert [p["label"] for p in response.json()["predictions"]] == [7]
        rows = {"instances": [[[0.0] * 28] * 28]}
        response = requests.post(url, json=rows, timeout=30)
        assert response.status_code == 200, response.text
        response = requests.post(url, json={"instances": []}, timeout=30)
        assert response.json()["message"] == "instances: expected 1 to 1024, got 0"
        (worker,) = (
            process
            for process in server.family()
            if "model_service_worker.py" in " ".join(process.cmdline())
        )
        assert worker.cwd().startswith(str(server.temporary))
        paths = worker.environ()["PYTHONPATH"].split(os.pathsep)
        assert [path for path in paths if path] == [worker.cwd()]
