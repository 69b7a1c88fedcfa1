"""The metrics of a real server."""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from loadtest.servers import wait_until
from server.store import read_archive
from tests.archives import SLOW_HANDLER, STATUS_HANDLER, foreign
from tests.serving import ROOT, ServerProcess, serving

SEVEN = (ROOT / "samples" / "seven.png").read_bytes()


def scrape(server: ServerProcess) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    response = requests.get(f"{server.telemetry}/metrics", timeout=30)
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def read(server: ServerProcess, name: str, model: str, **labels: str) -> float:
    pairs = {"model": model, "version": "1.0"} | labels
    return scrape(server)[name, frozenset(pairs.items())]


@pytest.fixture(scope="module")
def alone(store: Path) -> Iterator[ServerProcess]:
    """A server that only one test at a time sends requests to."""
    with serving(store, "mnist", "xor") as running:
        yield running


def test_counters_match_the_requests_sent(alone: ServerProcess) -> None:
    before = scrape(alone)
    sent = {
        "200": [SEVEN] * 7 + [json.dumps({"instances": [[[0] * 28] * 28] * 3}).encode()],
        "400": [b"{", b"[]"],
        "413": [json.dumps({"instances": [0] * 1025}).encode()],
        "415": [b"no image"] * 3,
    }
    for code, bodies in sent.items():
        for body in bodies:
            response = requests.post(alone.url("mnist"), data=body, timeout=30)
            assert response.status_code == int(code)
    after = scrape(alone)

    def counted(name: str, model: str = "mnist", **labels: str) -> float:
        key = name, frozenset(({"model": model, "version": "1.0"} | labels).items())
        return after[key] - before[key]

    for code, bodies in sent.items():
        assert counted("inference_requests_total", code=code) == len(bodies)
    assert counted("inference_instances_total") == 10
    assert counted("inference_predictions_total", label="7") >= 7
    assert counted("inference_confidence_ratio_count") == 10
    assert counted("inference_batch_requests_sum") == 14
    assert counted("inference_rejected_total", reason="malformed") == 2
    assert counted("inference_rejected_total", reason="too_large") == 1
    assert counted("inference_rejected_total", reason="unsupported_media_type") == 3
    assert counted("inference_stage_seconds_count", stage="forward") == 8
    assert counted("inference_queue_seconds_count") == 14
    # And what clients were answered, by class.
    for code, count in (("2xx", 8), ("4xx", 6), ("5xx", 0)):
        key = "serving_responses_total", frozenset({("model", "mnist"), ("code", code)})
        assert after[key] - before[key] == count
    assert counted("inference_requests_total", model="xor", code="200") == 0


def test_the_time_in_the_door_and_not_what_a_client_says(alone: ServerProcess) -> None:
    names = ("inference_queue_seconds_count", "inference_queue_seconds_sum")
    count, total = (read(alone, name, "xor") for name in names)
    for start in (f"t={time.time() - 1000:.3f}", "no time", "t=1.5"):
        headers = {"X-Request-Start": start}
        requests.post(alone.url("xor"), json={"instances": [[0, 0]]}, headers=headers, timeout=30)
    assert read(alone, names[0], "xor") == count + 3
    assert 0 < read(alone, names[1], "xor") - total < 90


def test_torchserve_s_own_metrics_are_in_the_same_scrape(alone: ServerProcess) -> None:
    requests.post(alone.url("mnist"), data=SEVEN, timeout=30)
    names = {name for name, _ in scrape(alone)}
    assert {"ts_inference_requests_total", "inference_requests_total"} <= names
    assert any(name.startswith("Requests2XX") for name in names)


def test_failure_counters_start_at_zero(tmp_path: Path) -> None:
    foreign(tmp_path, "status", STATUS_HANDLER)
    foreign(tmp_path, "slow", SLOW_HANDLER.format(seconds=1))
    with serving(tmp_path) as server, ThreadPoolExecutor(12) as pool:

        def failures(model: str) -> float:
            return server.metric("serving_responses_total", model=model, code="5xx")

        text = requests.get(f"{server.telemetry}/metrics", timeout=30).text
        assert "\nRequests5XX{" in text
        assert 'serving_responses_total{model="slow",code="5xx"} 0' in text
        for code in (500, 400, 507, 200):
            response = requests.post(server.url("status"), data=f"{code}", timeout=60)
            assert response.status_code == code
        assert failures("status") == 2
        text = requests.get(f"{server.telemetry}/metrics", timeout=30).text
        (torchserve,) = re.findall(r"^Requests5XX\{.*\} (\S+)$", text, re.MULTILINE)
        assert float(torchserve) == 2
        # Two are with TorchServe, the others wait in the door until they are refused.
        futures = [pool.submit(requests.post, server.url("slow"), data="x") for _ in range(12)]
        wait_until(lambda: server.metric("serving_waiting_requests") == 10)
        codes = [future.result().status_code for future in futures]
        assert codes.count(503) == failures("slow") == server.metric("serving_refused_total") > 0


def test_no_counter_goes_down_when_workers_are_killed(store: Path) -> None:
    with serving(store, "xor") as server:
        for expected in (1, 2, 3):
            requests.post(server.url("xor"), json={"instances": [[0, 0]]}, timeout=30)
            count = read(server, "inference_requests_total", "xor", code="200")
            assert count >= expected
            (worker,) = [p for p in server.family() if p.name().startswith("python")]
            worker.kill()
            wait_until(lambda: server.probe("/readyz")[0] == 503)
            assert read(server, "inference_requests_total", "xor", code="200") == count
            server.wait_until_ready()
            assert read(server, "inference_requests_total", "xor", code="200") >= count
        # Those of the requests and of the one warm-up.
        assert read(server, "inference_instances_total", "xor") == 4


def test_server_level_metrics(alone: ServerProcess, store: Path) -> None:
    def vitals(name: str, **labels: str) -> float:
        return scrape(alone)[f"serving_{name}", frozenset(labels.items())]

    mnist = {"model": "mnist", "version": "1.0"}
    assert vitals("model_ready", **mnist) == 1
    assert vitals("workers", **mnist) == 1
    starts = vitals("worker_starts_total")
    assert starts >= 2
    card = read_archive(store / "mnist.mar").card
    assert card
    for label, share in enumerate(card.metrics["test"]["label_shares"]):
        assert vitals("expected_label_ratio", label=str(label), **mnist) == share
    server, frontend, worker = (
        vitals("resident_memory_bytes", process=kind) for kind in ("server", "frontend", "worker")
    )
    # Two workers that have loaded torch, a JVM, and a small Python process.
    assert worker > frontend > server > 10 << 20
    victim = next(p for p in alone.family() if "model_service_worker" in " ".join(p.cmdline()))
    victim.kill()
    wait_until(lambda: vitals("worker_starts_total") == starts + 1)
    alone.wait_until_ready()
    assert vitals("resident_memory_bytes", process="worker") > frontend
