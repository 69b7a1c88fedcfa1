"""A worker, the JVM or the door is killed under load: what becomes of requests."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests

from loadtest.servers import wait_until
from tests.archives import foreign
from tests.reliability.traffic import LOST, Load, describe, keep_alive
from tests.serving import ROOT, ServerProcess, serving

SEVEN = (ROOT / "samples" / "seven.png").read_bytes()
XOR = b'{"instances": [[0, 1]]}'
# Kills its process for the request that says so, every time that it comes.
POISONED_HANDLER = """
import os

def handle(requests, context):
    if requests is None:
        return None
    for request in requests:
        if bytes(request["body"]) == b"poison":
            os.kill(os.getpid(), 9)
    return [b"fine"] * len(requests)
"""


@pytest.fixture
def server(store: Path) -> Iterator[ServerProcess]:
    with serving(store, TS_DEFAULT_WORKERS_PER_MODEL="2") as running:
        yield running


def busiest_worker(server: ServerProcess) -> psutil.Process:
    """One of the model that is under load."""
    workers = [p for p in server.family() if "model_service_worker" in " ".join(p.cmdline())]
    return max(workers, key=lambda worker: worker.cpu_times().user)


def test_a_worker_s_death_costs_nobody_a_request(server: ServerProcess) -> None:
    """Small requests are sent again by the door; the other worker, or the next one, answers."""
    users = [keep_alive(server.url("mnist"), [SEVEN]) for _ in range(16)]
    with Load(*users) as load:
        for round_ in range(1, 4):
            wait_until(lambda round_=round_: len(load.outcomes) > 500 * round_)  # type: ignore[misc]
            starts = server.metric("serving_worker_starts_total")
            busiest_worker(server).kill()
            wait_until(
                lambda starts=starts: server.metric("serving_worker_starts_total") > starts  # type: ignore[misc]
            )
            wait_until(lambda: server.metric("serving_workers", model="mnist") == 2)
    print(describe(load), [o for o in load.outcomes if o.status != 200][:5])
    assert set(load.statuses) == {200}


def test_a_request_that_kills_workers_is_sent_again_once(tmp_path: Path) -> None:
    foreign(tmp_path, "poisoned", POISONED_HANDLER, "batchSize: 1\n")
    with serving(tmp_path) as server:
        starts = server.metric("serving_worker_starts_total")
        response = requests.post(server.url("poisoned"), data="poison", timeout=60)
        assert response.status_code == 503
        assert response.json()["message"] == (
            "the request was lost with the process that served it; send it again"
        )
        server.wait_until_ready()
        assert server.metric("serving_worker_starts_total") - starts in (1, 2)
        assert requests.post(server.url("poisoned"), data="x", timeout=60).text == "fine"


def recovers(
    server: ServerProcess, victim: Callable[[], psutil.Process], how: signal.Signals
) -> tuple[Load, float]:
    """Kill a process under load; the load, and the seconds without an answer of 200."""
    users = [keep_alive(server.url("xor"), [XOR], idle=0.01) for _ in range(8)]
    with Load(*users) as load:
        wait_until(lambda: load.statuses[200] > 200)
        killed = time.monotonic()
        victim().send_signal(how)
        wait_until(
            lambda: any(o.status == 200 and o.sent > killed + 0.01 for o in load.outcomes), 60
        )
        server.wait_until_ready()
        before = load.statuses[200]
        wait_until(lambda: load.statuses[200] > before + 200)
    first = min(
        o.sent + o.seconds for o in load.outcomes if o.status == 200 and o.sent > killed + 0.01
    )
    print(f"{how.name}: {first - killed:.2f} s until it answers again, {describe(load)}")
    return load, first - killed


def test_the_jvm_is_started_again(server: ServerProcess) -> None:
    def java() -> psutil.Process:
        (process,) = [p for p in server.family() if p.name() == "java"]
        return process

    load, _ = recovers(server, java, signal.SIGKILL)
    # Every request has an answer, if it is a refusal; but for those whose answer was half sent.
    assert set(load.statuses) <= {200, 503, LOST}
    assert load.statuses[LOST] <= 8
    assert server.probe("/livez")[0] == 200
    assert server.metric("serving_torchserve_starts_total") == 2
    assert "TorchServe ended with exit code -9; starting TorchServe again" in server.output


def test_the_door_is_started_again(server: ServerProcess) -> None:
    def door() -> psutil.Process:
        (process,) = [p for p in server.family() if p.name() == "haproxy"]
        return process

    doors = server.metric("serving_door_starts_total")
    before = server.metric("serving_responses_total", model="xor", code="2xx")
    load, _ = recovers(server, door, signal.SIGKILL)
    # What was under way is gone with it; who connects meanwhile waits in the backlog.
    assert set(load.statuses) <= {200, LOST}
    assert load.statuses[LOST] <= 8
    assert server.metric("serving_door_starts_total") == doors + 1
    assert server.metric("serving_responses_total", model="xor", code="2xx") >= before


def test_a_jvm_that_stands_still(server: ServerProcess) -> None:
    """Defect of the first version: a scrape took 12 s, and so metrics were missing."""
    (java,) = [p for p in server.family() if p.name() == "java"]
    count = server.metric("inference_requests_total", model="xor")
    java.suspend()
    try:
        wait_until(lambda: "TorchServe is not answering" in server.probe("/readyz")[1])
        started = time.monotonic()
        scrape = requests.get(f"{server.telemetry}/metrics", timeout=10)
        print(f"a scrape took {time.monotonic() - started:.2f} s")
        assert scrape.status_code == 200
        assert server.metric("serving_snapshot_age_seconds") > 2
        assert server.metric("inference_requests_total", model="xor") == count
        assert server.probe("/livez")[0] == 200
        response = requests.post(server.url("xor"), data=XOR, timeout=60)
        assert response.status_code in (503, 504)
    finally:
        java.resume()
    server.wait_until_ready()


def test_no_process_and_no_file_is_left(server: ServerProcess) -> None:
    server.process.kill()
    wait_until(lambda: not server.family())


def test_a_restart_serves_what_was_served_whatever_the_store_holds_now(tmp_path: Path) -> None:
    foreign(tmp_path, "poisoned", POISONED_HANDLER, "batchSize: 1\n")
    with serving(tmp_path) as server:
        (tmp_path / "poisoned.mar").write_bytes(b"half of an archive")
        (java,) = [p for p in server.family() if p.name() == "java"]
        java.kill()
        wait_until(lambda: server.metric("serving_torchserve_starts_total") == 2)
        server.wait_until_ready()
        assert requests.post(server.url("poisoned"), data="x", timeout=60).text == "fine"
