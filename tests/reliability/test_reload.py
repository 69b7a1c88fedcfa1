"""Other models take over from those that are served, and no request is lost."""

import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import requests

from handler.card import CARD_FILE
from loadtest.servers import wait_until
from loadtest.traffic import LOST, Load, Outcome, keep_alive, of_status, percentile
from server.store import read_archive
from tests.archives import FAILING_HANDLER, SLOW_HANDLER, altered, foreign
from tests.reliability.processes import named
from tests.reliability.record import Section, scaled
from tests.serving import ROOT, ServerProcess, serving

VERSION_HANDLER = """
def handle(requests, context):
    if requests is None:
        return None
    return [
        b"{version}" + b" " * (1_000_000 if bytes(request["body"]) == b"long" else 0)
        for request in requests
    ]
"""
CHANGES = scaled(2, 10)
CHANGES_SECTION = Section(
    31,
    "Changes of models under load",
    f"""{CHANGES} in a row, each `POST /reload` with another version in the store, while 24 clients
go on: six that send without a pause, six that idle for 0.3 s, four with a connection a request,
four that send 1 MiB, and four that take half a second to read an answer of 1 MB. The case fails if
a request is lost, or if a connection that met a version meets an older one.""",
)


def put(store: Path, version: str) -> None:
    """Have the store hold one version of model `m`, which answers with its version."""
    staging = store / "staging"
    staging.mkdir(exist_ok=True)
    handler = VERSION_HANDLER.replace("{version}", version)
    foreign(staging, "m", handler, version=version).rename(store / "m.mar")


def reload(server: ServerProcess) -> requests.Response:
    return requests.post(f"{server.telemetry}/reload", timeout=180)


def versions_by_connection(outcomes: list[Outcome]) -> list[list[float]]:
    seen: dict[int, list[float]] = defaultdict(list)
    for outcome in outcomes:  # in the order of their ends, which is that of each connection
        seen[outcome.connection].append(float(outcome.body))
    return list(seen.values())


def test_under_load_nothing_is_lost_and_no_connection_goes_back(tmp_path: Path) -> None:
    put(tmp_path, "1.0")
    with serving(tmp_path) as server:
        url = server.url("m")
        busy = [keep_alive(url, [b"x"]) for _ in range(6)]
        idle = [keep_alive(url, [b"x"], idle=0.3) for _ in range(6)]
        short = [keep_alive(url, [b"x"], idle=0.01, one_connection=False) for _ in range(4)]
        large = [keep_alive(url, [b"x" * (1 << 20)], idle=0.05) for _ in range(4)]
        slow = [keep_alive(url, [b"long"], idle=0.05, read_pause=0.05) for _ in range(4)]
        seconds = []
        with Load(*busy, *idle, *short, *large, *slow) as load:
            for number in range(2, 2 + CHANGES):
                version = f"{number}.0"
                wait_until(lambda: len(load.outcomes) > 300)
                put(tmp_path, version)
                began = time.monotonic()
                answer = reload(server)
                seconds.append(time.monotonic() - began)
                assert answer.status_code == 200, answer.text
                assert list(answer.json()["models"]) == [f"m/{version}"]
                # From the answer on, a new connection meets the new version.
                assert requests.post(url, data="x", timeout=60).text == version
                seen = len(load.outcomes)
                wait_until(lambda seen=seen: len(load.outcomes) > seen + 300)  # type: ignore[misc]
        CHANGES_SECTION.record(
            {
                "what": f"{CHANGES} changes of models",
                "sent": len(load.outcomes),
                "lost": load.statuses[LOST],
                "refused": load.statuses[503],
                "p99 ms": 1e3 * percentile(load.outcomes, 0.99),
                "a change, median s": statistics.median(seconds),
            }
        )
        # Two servers at once may be more than a busy machine can do in time.
        assert set(load.statuses) <= {200, 503}
        good = [*of_status(load.outcomes, 200)]
        for versions in versions_by_connection(good):
            assert versions == sorted(versions)
        expected = {float(number) for number in range(1, 2 + CHANGES)}
        assert {float(outcome.body) for outcome in good} == expected
        total = server.metric("serving_responses_total", model="m", code="2xx")
        assert total == len(good) + CHANGES
        assert server.metric("serving_reloads_total", result="done") == CHANGES
        # The generations before are gone.
        for name in ("java", "haproxy"):
            wait_until(lambda name=name: len(named(name)(server)) == 1)  # type: ignore[misc]


def test_the_command_and_the_signal(tmp_path: Path) -> None:
    put(tmp_path, "1.0")
    with serving(tmp_path) as server:
        put(tmp_path, "2.0")
        command = [sys.executable, "-m", "server", "reload"]
        environment = {"TELEMETRY_ADDRESS": server.telemetry}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, "reloaded: m/2.0\n"), done.stderr
        put(tmp_path, "3.0")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "reloaded: serving m/3.0" in server.output)
        assert requests.post(server.url("m"), data="x", timeout=60).text == "3.0"
        (tmp_path / "m.mar").unlink()
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "holds no archive" in done.stderr
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"no server answers at {server.telemetry}" in done.stderr


def test_a_model_that_is_new_and_one_that_is_gone(tmp_path: Path) -> None:
    put(tmp_path, "1.0")
    with serving(tmp_path) as server:
        (tmp_path / "m.mar").unlink()
        foreign(tmp_path, "other", SLOW_HANDLER.format(seconds=0))
        assert reload(server).status_code == 200
        assert requests.post(server.url("other"), data="x", timeout=60).text == "x"
        gone = requests.post(server.url("m"), data="x", timeout=60)
        assert gone.status_code == 404
        assert gone.json()["message"] == "there is no model m; there are: other"


class Served(NamedTuple):
    """A server, and the directory that it reloads from."""

    server: ServerProcess
    store: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("refused")
    shutil.copy(store / "xor.mar", directory)
    with serving(directory, TS_DEFAULT_STARTUP_TIMEOUT="20") as server:
        yield Served(server, directory)


class TestRefused:
    """If anything in the new store is wrong, the old one goes on, and the answer says what."""

    def refused(self, served: Served) -> str:
        before = served.server.metric("serving_reloads_total", result="refused")
        answer = reload(served.server)
        assert answer.status_code == 409, answer.text
        for file in served.store.iterdir():
            if file.name != "xor.mar" and file.is_file():
                file.unlink()
        url = served.server.url("xor")
        response = requests.post(url, json={"instances": [[0, 1]]}, timeout=60)
        assert response.json()["predictions"][0]["label"] == 1
        assert served.server.probe("/readyz")[0] == 200
        reason: str = answer.json()["reason"]
        assert reason in served.server.output
        assert served.server.metric("serving_reloads_total", result="refused") == before + 1
        return reason

    def test_a_truncated_archive(self, served: Served, store: Path) -> None:
        content = (store / "mnist.mar").read_bytes()
        (served.store / "mnist.mar").write_bytes(content[:-100])
        assert "mnist.mar is corrupt" in self.refused(served)

    def test_weights_that_were_exchanged(self, served: Served, store: Path) -> None:
        altered(store / "mnist.mar", served.store / "mnist.mar", {"model.pt": b"another"})
        assert "model mnist failed to load: ValueError: model.pt" in self.refused(served)

    def test_a_handler_that_fails(self, served: Served) -> None:
        foreign(served.store, "broken", FAILING_HANDLER)
        assert "LookupError: the weights are on holiday" in self.refused(served)

    def test_a_wrong_answer_to_the_example(self, served: Served, store: Path) -> None:
        card = read_archive(store / "mnist.mar").card
        assert card
        wrong = replace(card, example_label=9 - card.example_label).to_json()
        target = served.store / "mnist.mar"
        altered(store / "mnist.mar", target, {CARD_FILE: wrong.encode()})
        reason = self.refused(served)
        assert "not ready within 20 s" in reason
        assert f"the warm-up prediction is {card.example_label}, not" in reason

    def test_a_model_that_takes_too_long(self, served: Served) -> None:
        slow = SLOW_HANDLER.format(seconds=60).replace("return None", "time.sleep(60)")
        foreign(served.store, "slow", slow)
        assert "not ready within 20 s (TS_DEFAULT_STARTUP_TIMEOUT): slow: " in self.refused(served)
