"""The parts of the load tests that need no server."""

import asyncio
import math
import random
import socket
import subprocess
import sys
import threading
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handler import metrics
from loadtest import digits, objectives, prometheus
from loadtest.arrivals import schedule
from loadtest.objectives import Verdict, enough_samples, judge_latency
from loadtest.recorder import Recorder, Results, percentile
from loadtest.server_side import ModelSide, difference, mismatches
from loadtest.traffic import Client
from tests.serving import ROOT


def test_digits_have_images_and_labels() -> None:
    loaded = digits.load()
    assert len(loaded) == 300
    assert [digit.label for digit in loaded[:5]] == [7, 2, 1, 0, 4]
    assert all(digit.png.startswith(b"\x89PNG") for digit in loaded)


def test_locustfile_imports_no_other_package() -> None:
    """It runs in an image that has none of them, against a service elsewhere."""
    others = "{'bench', 'handler', 'server', 'training'}"
    code = f"import sys, loadtest.locustfile; sys.exit(bool({others} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_buckets_match_the_server() -> None:
    assert prometheus._SECONDS == metrics.SECONDS


class TestArrivals:
    def test_poisson_gaps_are_exponential(self) -> None:
        times = list(islice(schedule("poisson", 50, 10.0, random.Random(0)), 20_000))
        gaps = np.diff([10.0, *times])
        assert gaps.min() > 0
        assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
        assert gaps.std() == pytest.approx(1 / 50, rel=0.05)

    def test_constant_gaps_are_equal_after_a_random_phase(self) -> None:
        first, second = (
            list(islice(schedule("constant", 4, 0.0, random.Random(seed)), 9)) for seed in (1, 2)
        )
        assert first[0] != second[0]
        assert 0 <= first[0] <= 0.25
        assert all(b - a == pytest.approx(0.25) for a, b in pairwise(first))

    def test_unknown_kind(self) -> None:
        with pytest.raises(ValueError, match="poisson, constant"):
            next(schedule("burst", 1, 0, random.Random(0)))


def recorded(latencies: list[float], **counts: int) -> Results:
    recorder = Recorder()
    for index, latency in enumerate(latencies):
        recorder.add("xor", 1000.0 + index, latency, 0.0, {"code 200": 1})
    recorder.add("xor", 1000.0, 0.0, 0.0, counts)
    results = Results()
    results.started, results.ended = 1000.0, 1010.0
    results.merge(recorder.take())
    return results


class TestRecorder:
    def test_each_request_is_taken_once(self) -> None:
        recorder, results = Recorder(), Results()
        recorder.add("xor", 1.0, 0.5, 0.1, {"code 200": 1, "instances": 2, "correct": 1})
        results.merge(recorder.take())
        recorder.add("xor", 2.0, 0.25, 0.0, {"code 0": 1, "failed": 1})
        results.merge(recorder.take())
        results.merge(recorder.take())
        scenario = results.scenarios["xor"]
        assert scenario.rows.tolist() == [[1.0, 0.5, 0.1, 0.0], [2.0, 0.25, 0.0, 1.0]]
        assert scenario.codes == {"0": 1, "200": 1}
        assert scenario.accuracy == 0.5

    @pytest.mark.parametrize(("percent", "expected"), [(50, 5), (90, 9), (91, 10), (100, 10)])
    def test_percentile_is_a_measured_value(self, percent: float, expected: float) -> None:
        assert percentile(np.arange(1.0, 11.0), percent) == expected

    def test_percentile_of_no_values(self) -> None:
        assert percentile(np.empty(0), 50) == math.inf


class TestObjectives:
    def test_repository_objectives(self) -> None:
        assert set(objectives.load()) == {"mnist-png", "mnist-json", "xor"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[xor]\nspeed = 1\n", "unknown objective 'speed'"),
            ("[xor]\np50 = true\n", "p50 is not a number"),
            ("[xor]\np50 = nan\n", "p50 is not a number"),
            ("xor = 1\n", "not a table"),
            ("[xor", "Expected"),
        ],
    )
    def test_invalid_file(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "o.toml").write_text(text)
        with pytest.raises(objectives.ObjectiveError, match=message):
            objectives.load(tmp_path / "o.toml")

    @pytest.mark.parametrize(
        ("percent", "over", "least"),
        [(99, 0, 459), (99, 1, 662), (90, 1, 64), (50, 0, 7), (99.9, 0, 4603)],
    )
    def test_minimum_samples_of_the_early_stopping_criterion(
        self, percent: float, over: int, least: int
    ) -> None:
        """459 and 662 for p99, 64 for p90 are MLPerf's; the others are log(0.01) / log(p)."""
        assert enough_samples(least, over, percent)
        assert not enough_samples(least - 1, over, percent)

    def test_many_samples_do_not_overflow(self) -> None:
        assert enough_samples(1_000_000, 9_700, 99)
        assert not enough_samples(1_000_000, 9_900, 99)

    @pytest.mark.parametrize(
        ("count", "over", "verdict"),
        [
            (459, 0, Verdict.PASSED),
            (458, 0, Verdict.UNDECIDED),
            (1000, 9, Verdict.UNDECIDED),
            (1000, 11, Verdict.FAILED),
        ],
    )
    def test_latency_verdict(self, count: int, over: int, verdict: Verdict) -> None:
        latencies = np.array([0.001] * (count - over) + [0.2] * over)
        assert judge_latency("xor", latencies, 99, 100).verdict is verdict

    def test_other_objectives(self) -> None:
        results = recorded([0.001] * 100, failed=1, instances=100, correct=99)
        limits = {"xor": {"error_ratio": 0.0, "accuracy": 0.99, "min_rate": 11.0}}
        verdicts = {j.objective: j.verdict for j in objectives.judge(results, limits)}
        assert verdicts == {
            "error_ratio": Verdict.FAILED,
            "accuracy": Verdict.PASSED,
            "min_rate": Verdict.FAILED,
        }
        assert objectives.overall(objectives.judge(results, limits)) is Verdict.FAILED

    def test_run_without_objectives(self) -> None:
        with pytest.raises(objectives.ObjectiveError, match="there are objectives for mnist-png"):
            objectives.judge(recorded([1.0]), {"mnist-png": {}})


class TestServerSide:
    def test_difference_of_two_scrapes(self) -> None:
        def scrape(factor: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
            base = (("model", "xor"), ("version", "1.0"))
            return {
                ("inference_requests_total", (("code", "200"), *base)): 10.0 * factor,
                ("inference_requests_total", (("code", "400"), *base)): 3.0,
                ("inference_batch_requests_sum", base): 10.0 * factor,
                ("inference_batch_requests_count", base): 5.0 * factor,
                ("inference_stage_seconds_sum", (*base[:1], ("stage", "forward"))): 0.02 * factor,
                ("inference_stage_seconds_count", (*base[:1], ("stage", "forward"))): 5.0 * factor,
            }

        doors = {
            factor: {
                ("serving_responses_total", (("code", "2xx"), ("model", "xor"))): 9.0 * factor,
                ("serving_refused_total", (("model", "xor"),)): 2.0 * factor,
            }
            for factor in (1, 3)
        }
        side = difference(scrape(1) | doors[1], scrape(3) | doors[3])["xor"]
        assert side.answers == {"2xx": 18}
        assert side.refused == 4
        assert side.codes == {"200": 20}
        assert side.batch == 2
        assert side.milliseconds["forward"] == pytest.approx(4)
        assert side.milliseconds["queue"] == 0

    @pytest.mark.parametrize(
        ("sent", "served", "agree"),
        [
            ({"200": 5, "400": 1}, {"2xx": 5, "4xx": 1}, True),
            # Refused in the door, late, and gone: clients see what the door counts.
            ({"200": 5, "503": 2, "504": 1, "404": 1}, {"2xx": 5, "4xx": 1, "5xx": 3}, True),
            ({"200": 5, "503": 2}, {"2xx": 5, "5xx": 1}, False),
            ({"200": 5, "0": 2}, {"2xx": 7}, True),
            ({"200": 5, "0": 2}, {"2xx": 5}, True),
            ({"200": 5, "0": 2}, {"2xx": 8}, False),
            ({"200": 5}, {"2xx": 4}, False),
            ({"200": 5}, {"2xx": 6}, False),
            ({"200": 5}, {"2xx": 4, "5xx": 1}, False),
            ({"200": 5}, {}, False),
        ],
    )
    def test_every_request_is_accounted_for(
        self, sent: dict[str, int], served: dict[str, int], agree: bool
    ) -> None:
        results = Results()
        recorder = Recorder()
        for code, count in sent.items():
            for _ in range(count):
                recorder.add("xor", 0.0, 0.0, 0.0, {f"code {code}": 1})
        results.merge(recorder.take())
        side = ModelSide()
        side.answers.update(served)
        assert (mismatches(results, {"xor": side}) == []) is agree


def test_a_client_reads_answers_in_chunks() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for text in (b"one", b"two"):
            await reader.readuntil(b"\r\n\r\nx")
            writer.write(head + b"1\r\n%b\r\n2\r\n%b\r\n0\r\n\r\n" % (text[:1], text[1:]))
        writer.close()

    async def ask() -> list[tuple[int, bytes]]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
            outcomes = [await client.ask(b"x") for _ in range(2)]
            await client.close()
        return [(outcome.status, outcome.body) for outcome in outcomes]

    assert asyncio.run(ask()) == [(200, b"one"), (200, b"two")]


def test_client_reads_a_refusal_behind_which_the_connection_broke() -> None:
    """The rest of the body is written when the refusal has come and nobody has read it yet."""
    writing, closed = threading.Event(), threading.Event()

    class Body(bytes):
        def __getitem__(self, part: Any) -> Any:
            if part.start:
                writing.set()
                assert closed.wait(10)
            return super().__getitem__(part)

    def refuse(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(10)
            assert writing.wait(10)
            connection.sendall(b"HTTP/1.1 503 \r\nContent-Length: 4\r\n\r\nbusy")
        closed.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=refuse, args=[listener])
        thread.start()
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}/", pause=0.01)
        outcome = asyncio.run(client.ask(Body(1000)))
        thread.join()
    assert (outcome.status, outcome.body) == (503, b"busy")
