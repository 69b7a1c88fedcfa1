"""Ends that test_faults.py does not have: requests that kill, processes that stand still for good,
and what a killed server leaves.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from loadtest.servers import wait_until
from loadtest.traffic import Load, keep_alive
from tests.archives import foreign
from tests.reliability.processes import named
from tests.serving import ServerProcess, serving

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

ENDLESS_HANDLER = """
def handle(requests, context):
    while requests is not None:
        pass
"""


@pytest.fixture
def server(store: Path) -> Iterator[ServerProcess]:
    with serving(store, TS_DEFAULT_WORKERS_PER_MODEL="2") as running:
        yield running


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


def test_a_jvm_that_stands_still(server: ServerProcess) -> None:
    """Defect of the first version: a scrape took 12 s, and so metrics were missing."""
    (java,) = named("java")(server)
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


def test_a_door_that_stands_still_is_replaced(server: ServerProcess) -> None:
    doors = named("haproxy")
    wait_until(lambda: len(doors(server)) == 1)  # that of the start-up has left
    (door,) = doors(server)
    door.suspend()
    wait_until(lambda: "the front door is not answering" in server.probe("/readyz")[1])
    assert server.probe("/readyz")[0] == 503
    server.wait_until_ready()
    assert not door.is_running()
    assert requests.post(server.url("xor"), data=XOR, timeout=60).status_code == 200
    assert "the front door has not answered for" in server.output


def test_a_killed_server_leaves_nothing(tmp_path: Path) -> None:
    """Not even a worker that computes for ever, nor, after the next start, its directory."""
    foreign(tmp_path, "endless", ENDLESS_HANDLER)
    with ServerProcess(tmp_path) as server:
        server.wait_until_ready()
        with Load(keep_alive(server.url("endless"), [b"x"], count=1)) as load:
            wait_until(lambda: server.accepted() == 1)
            (java,) = named("java")(server)
            server.process.kill()
            server.wait()
            load.wait()
        wait_until(lambda: not server.family())
        # Where a JVM keeps its performance data, whatever TMPDIR is.
        assert not [*Path("/tmp").glob(f"hsperfdata_*/{java.pid}")]
        (left,) = server.temporary.glob("serve-*")
        server.start()
        server.wait_until_ready()
        assert not left.exists()
        assert len([*server.temporary.glob("serve-*")]) == 1


def test_a_restart_serves_what_was_served_whatever_the_store_holds_now(tmp_path: Path) -> None:
    foreign(tmp_path, "poisoned", POISONED_HANDLER, "batchSize: 1\n")
    with serving(tmp_path) as server:
        (tmp_path / "poisoned.mar").write_bytes(b"half of an archive")
        (java,) = named("java")(server)
        java.kill()
        wait_until(lambda: server.metric("serving_torchserve_starts_total") == 2)
        server.wait_until_ready()
        assert requests.post(server.url("poisoned"), data="x", timeout=60).text == "fine"
