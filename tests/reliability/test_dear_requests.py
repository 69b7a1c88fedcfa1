"""Requests that take long, many at once: their neighbours are answered in their time."""

import json
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pytest
import requests
from PIL import Image

from loadtest.digits import load
from tests.images import b64, dearest_png, encode
from tests.serving import ServerProcess, serving

ATTACKERS = 12
NEIGHBOURS = 4
NEIGHBOUR_REQUESTS = 400


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[ServerProcess]:
    with serving(store, "mnist", TS_DEFAULT_WORKERS_PER_MODEL="2") as running:
        yield running


class Attack:
    """Sends one body over and over from many connections, in a `with` block.

    Attributes:
        answers: how many there were of each status.
        refusals: one answer of each status but 200.
    """

    def __init__(self, url: str, body: bytes) -> None:
        self._url, self._body = url, body
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(ATTACKERS)]
        self.answers: Counter[int] = Counter()
        self.refusals: dict[int, requests.Response] = {}

    def _send(self) -> None:
        with requests.Session() as session:
            while not self._over.is_set():
                response = session.post(self._url, data=self._body, timeout=300)
                self.answers[response.status_code] += 1
                if response.status_code != 200:
                    self.refusals[response.status_code] = response

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def ask_for_digits(server: ServerProcess, count: int) -> list[float]:
    """Send the sample digits from a few connections, and check each answer.

    Returns:
        Seconds of each request.
    """
    digits = load()[:20]
    url = server.url("mnist")
    expected = [requests.post(url, data=digit.png, timeout=300).json() for digit in digits]

    def ask(start: int) -> list[float]:
        seconds = []
        with requests.Session() as session:
            for index in range(start, count, NEIGHBOURS):
                begin = time.perf_counter()
                response = session.post(url, data=digits[index % 20].png, timeout=300)
                seconds.append(time.perf_counter() - begin)
                assert response.status_code == 200, response.text
                (got,), (want,) = (
                    answer["predictions"] for answer in (response.json(), expected[index % 20])
                )
                assert got["probabilities"] == pytest.approx(want["probabilities"], abs=1e-6)
        return seconds

    with ThreadPoolExecutor(NEIGHBOURS) as pool:
        return [second for part in pool.map(ask, range(NEIGHBOURS)) for second in part]


def report(what: str, seconds: list[float], answers: Counter[int]) -> None:
    cuts = statistics.quantiles(seconds, n=100)
    figures = {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": max(seconds)}
    text = ", ".join(f"{name} {figure * 1000:.0f} ms" for name, figure in figures.items())
    print(f"{what}: {len(seconds)} neighbours' requests: {text}; attackers got {dict(answers)}")


def test_many_large_pictures_in_one_request_are_refused(server: ServerProcess) -> None:
    image = Image.new("1", (4096, 4096))
    image.paste(1, (1000, 1000, 2000, 3000))
    body = json.dumps({"instances": [b64(encode(image))] * 32}).encode()
    with Attack(server.url("mnist"), body) as attack:
        seconds = ask_for_digits(server, NEIGHBOUR_REQUESTS)
    report("32 pictures a request", seconds, attack.answers)
    assert attack.answers.keys() == {413}
    assert attack.refusals[413].json()["message"] == (
        "instances[1].b64: the images up to this one have 33554432 pixels; the limit of a request "
        "is 16777216"
    )


def test_the_dearest_picture_is_answered_or_put_off(server: ServerProcess) -> None:
    body = dearest_png()
    workers = {process.pid for process in server.family()}
    assert requests.post(server.url("mnist"), data=body, timeout=300).status_code == 200
    with Attack(server.url("mnist"), body) as attack:
        seconds = ask_for_digits(server, NEIGHBOUR_REQUESTS)
    report("the dearest picture", seconds, attack.answers)
    assert attack.answers.keys() == {200, 503}
    refusal = attack.refusals[503]
    assert refusal.json()["code"] == 503
    assert 1 <= int(refusal.headers["Retry-After"]) <= 60
    assert {process.pid for process in server.family()} == workers


def test_explanations_are_answered_or_put_off(server: ServerProcess) -> None:
    instances = [b64(digit.png) for digit in load()[:16]]
    body = json.dumps({"instances": instances}).encode()
    with Attack(f"{server.inference}/explanations/mnist", body) as attack:
        seconds = ask_for_digits(server, NEIGHBOUR_REQUESTS)
    report("16 explanations a request", seconds, attack.answers)
    assert attack.answers.keys() == {200, 503}
    assert 1 <= int(attack.refusals[503].headers["Retry-After"]) <= 60
