"""A batch is whatever has arrived while the worker was busy."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from loadtest.servers import wait_until
from tests.archives import COUNTING_HANDLER, foreign
from tests.serving import serving

DELAY = "batchSize: 8\nmaxBatchDelay: {milliseconds}\n"


def ask(url: str) -> str:
    response = requests.post(url, data="x", timeout=60)
    assert response.status_code == 200
    return response.text


def test_a_batch_does_not_wait_for_more_requests(tmp_path: Path) -> None:
    """The batch delay is 10 minutes, so any answer shows that the batch did not wait."""
    foreign(tmp_path, "counting", COUNTING_HANDLER, DELAY.format(milliseconds=600_000))
    with serving(tmp_path) as server, ThreadPoolExecutor(12) as pool:
        url = server.url("counting")
        first = pool.submit(ask, url)
        wait_until(lambda: server.accepted() == 1)
        wait_until(lambda: server.metric("serving_queued_requests") == 0)  # the worker has it
        others = [pool.submit(ask, url) for _ in range(11)]
        wait_until(lambda: server.metric("serving_queued_requests") == 11)
        (server.temporary / "logs" / "open").touch()
        assert first.result() == "1"
        assert sorted(other.result() for other in others) == ["3"] * 3 + ["8"] * 8


def test_waiting_can_be_configured(tmp_path: Path) -> None:
    foreign(tmp_path, "counting", COUNTING_HANDLER, DELAY.format(milliseconds=2_000))
    with serving(tmp_path, WAIT_FOR_BATCH="true") as server, ThreadPoolExecutor(2) as pool:
        (server.temporary / "logs" / "open").touch()
        first = pool.submit(ask, server.url("counting"))
        wait_until(lambda: server.accepted() == 1)
        second = pool.submit(ask, server.url("counting"))
        assert [first.result(), second.result()] == ["2", "2"]
