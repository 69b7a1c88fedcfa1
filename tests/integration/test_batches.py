"""A batch is whatever has arrived while the worker was busy, and who takes it."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from loadtest.servers import wait_until
from tests.archives import COUNTING_HANDLER, STAYING_HANDLER, foreign
from tests.serving import serving

DELAY = "batchSize: 8\nmaxBatchDelay: {milliseconds}\n"


# However many this machine has: on two, one worker is to compute while the frontend has the other.
TWO_PROCESSORS = "-Xmx256m -XX:+UseSerialGC -XX:ActiveProcessorCount=2"


def ask(url: str, body: str = "x") -> str:
    response = requests.post(url, data=body, timeout=60)
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


def test_of_two_workers_one_takes_batches_while_it_is_quick(tmp_path: Path) -> None:
    foreign(tmp_path, "staying", STAYING_HANDLER, DELAY.format(milliseconds=100))
    two = {"TS_DEFAULT_WORKERS_PER_MODEL": "2", "TS_VMARGS": TWO_PROCESSORS}
    with serving(tmp_path, **two) as server, ThreadPoolExecutor(1) as pool:
        url = server.url("staying")
        workers = [ask(url) for _ in range(200)]
        # By TorchServe's own order they would alternate. A machine that stands still for a moment
        # hands over to the other, which then goes on.
        changes = sum(a != b for a, b in itertools.pairwise(workers))
        assert changes < 50
        # While one takes long, the other is there.
        staying = pool.submit(ask, url, "stay")
        wait_until(lambda: server.accepted() == 201)
        wait_until(lambda: server.metric("serving_queued_requests") == 0)
        (other,) = {ask(url) for _ in range(20)}
        (server.temporary / "logs" / "open").touch()
        assert staying.result() != other
