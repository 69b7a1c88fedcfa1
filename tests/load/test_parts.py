"""The parts of the load tests that need no server."""

import json
import math
import random
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from handler import metrics
from loadtest import capacity, compare, digits, objectives, prometheus, report
from loadtest.arrivals import schedule
from loadtest.objectives import Outcome, Verdict, enough_samples, judge_latency
from loadtest.recorder import Recorder, Results, percentile
from loadtest.server_side import ModelSide, difference, mismatches
from tests.serving import ROOT


def test_the_digits_are_pictures_with_their_labels() -> None:
    loaded = digits.load()
    assert len(loaded) == 300
    assert [digit.label for digit in loaded[:5]] == [7, 2, 1, 0, 4]
    assert all(digit.png.startswith(b"\x89PNG") for digit in loaded)


def test_the_users_need_nothing_of_the_server() -> None:
    """They run in a container of their own, against a service somewhere else."""
    others = "{'bench', 'handler', 'server', 'training'}"
    code = f"import sys, loadtest.locustfile; sys.exit(bool({others} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_buckets_are_those_of_the_server() -> None:
    assert prometheus._SECONDS == metrics.SECONDS


class TestArrivals:
    def test_poisson_gaps_are_exponential(self) -> None:
        times = list(islice(schedule("poisson", 50, 10.0, random.Random(0)), 20_000))
        gaps = np.diff([10.0, *times])
        assert gaps.min() > 0
        assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
        assert gaps.std() == pytest.approx(1 / 50, rel=0.05)

    def test_constant_gaps_are_equal_from_a_random_phase(self) -> None:
        first, second = (
            list(islice(schedule("constant", 4, 0.0, random.Random(seed)), 9)) for seed in (1, 2)
        )
        assert first[0] != second[0]
        assert 0 <= first[0] <= 0.25
        assert all(b - a == pytest.approx(0.25) for a, b in pairwise(first))

    def test_another_kind(self) -> None:
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
    def test_what_was_taken_is_not_taken_again(self) -> None:
        recorder, results = Recorder(), Results()
        recorder.add("xor", 1.0, 0.5, 0.1, {"code 200": 1, "instances": 2, "correct": 1})
        results.merge(recorder.take())
        recorder.add("xor", 2.0, 0.25, 0.0, {"code 0": 1, "failed": 1})
        results.merge(recorder.take())
        results.merge(recorder.take())
        scenario = results.scenarios["xor"]
        assert scenario.rows.tolist() == [[1.0, 0.5, 0.1], [2.0, 0.25, 0.0]]
        assert scenario.codes == {"0": 1, "200": 1}
        assert scenario.accuracy == 0.5

    @pytest.mark.parametrize(("percent", "expected"), [(50, 5), (90, 9), (91, 10), (100, 10)])
    def test_a_percentile_is_a_value_that_was_seen(self, percent: float, expected: float) -> None:
        assert percentile(np.arange(1.0, 11.0), percent) == expected

    def test_the_percentile_of_nothing(self) -> None:
        assert percentile(np.empty(0), 50) == math.inf


class TestObjectives:
    def test_those_of_the_repository(self) -> None:
        assert set(objectives.load()) == {"mnist-png", "mnist-json", "xor"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[xor]\nspeed = 1\n", "there is no objective 'speed'"),
            ("[xor]\np50 = true\n", "p50 is no number"),
            ("xor = 1\n", "no table"),
            ("[xor", "Expected"),
        ],
    )
    def test_a_file_that_cannot_be_used(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "o.toml").write_text(text)
        with pytest.raises(objectives.ObjectiveError, match=message):
            objectives.load(tmp_path / "o.toml")

    @pytest.mark.parametrize(
        ("percent", "over", "least"),
        [(99, 0, 459), (99, 1, 662), (90, 1, 64), (50, 0, 7), (99.9, 0, 4603)],
    )
    def test_the_fewest_samples_of_the_early_stopping_criterion(
        self, percent: float, over: int, least: int
    ) -> None:
        """MLPerf's figures: 459 and 662 for p99, 64 for p90; the others by log(0.01) / log(p)."""
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
    def test_a_latency(self, count: int, over: int, verdict: Verdict) -> None:
        latencies = np.array([0.001] * (count - over) + [0.2] * over)
        assert judge_latency("xor", latencies, 99, 100).verdict is verdict

    def test_every_other_objective(self) -> None:
        results = recorded([0.001] * 100, failed=1, instances=100, correct=99)
        limits = {"xor": {"error_ratio": 0.0, "accuracy": 0.99, "min_rate": 11.0}}
        verdicts = {j.objective: j.verdict for j in objectives.judge(results, limits)}
        assert verdicts == {
            "error_ratio": Verdict.FAILED,
            "accuracy": Verdict.PASSED,
            "min_rate": Verdict.FAILED,
        }
        assert objectives.overall(objectives.judge(results, limits)) is Verdict.FAILED

    def test_a_run_for_which_there_are_none(self) -> None:
        with pytest.raises(objectives.ObjectiveError, match="there are some for mnist-png"):
            objectives.judge(recorded([1.0]), {"mnist-png": {}})


class TestServerSide:
    def test_the_difference_of_two_scrapes(self) -> None:
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

        side = difference(scrape(1), scrape(3))["xor"]
        assert side.codes == {"200": 20}
        assert side.batch == 2
        assert side.milliseconds["forward"] == pytest.approx(4)
        assert side.milliseconds["queue"] == 0

    @pytest.mark.parametrize(
        ("sent", "served", "agree"),
        [
            ({"200": 5, "400": 1}, {"200": 5, "400": 1}, True),
            ({"200": 5, "503": 2, "404": 1}, {"200": 5}, True),
            ({"200": 5, "0": 2}, {"200": 7}, True),
            ({"200": 5, "0": 2}, {"200": 5}, True),
            ({"200": 5, "0": 2}, {"200": 8}, False),
            ({"200": 5}, {"200": 4}, False),
            ({"200": 5}, {"200": 6}, False),
            ({"200": 5}, {"200": 4, "500": 1}, False),
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
        side.codes.update(served)
        assert (mismatches(results, {"xor": side}) == []) is agree


SEARCH = capacity.Search(
    capacity.Objective(99, 25),
    "xor",
    window=2,
    windows=3,
    low=100,
    high=4000,
    precision=0.05,
    processes=1,
)


def outcome(rate: float, held: bool, generator_limited: bool = False) -> capacity.Probe:
    reason = "" if held else "over"
    return capacity.Probe(
        rate, rate, {"p50": 1, "p95": 1, "p99": 1}, [1.0], 1.0, held, reason, generator_limited
    )


class TestCapacity:
    @pytest.mark.parametrize("limit", [130, 777, 3999, 4000])
    def test_the_search_closes_in(self, limit: float) -> None:
        probes = capacity.find(SEARCH, lambda rate: outcome(rate, rate <= limit))
        found = capacity.best(probes)
        assert found
        assert 0.94 * limit <= found.rate <= limit

    def test_no_rate_holds(self) -> None:
        probes = capacity.find(SEARCH, lambda rate: outcome(rate, held=False))
        assert capacity.best(probes) is None
        assert "at no rate" in capacity.summary(SEARCH, probes)

    def test_one_hiccup_does_not_end_the_search(self) -> None:
        seen: list[float] = []

        def attempt(rate: float) -> capacity.Probe:
            seen.append(rate)
            return outcome(rate, rate < 1000 and seen.count(rate) != (rate == 200))

        found = capacity.best(capacity.find(SEARCH, attempt))
        assert found
        assert found.rate > 900

    def test_a_limit_of_the_generator_is_said(self) -> None:
        probes = capacity.find(SEARCH, lambda rate: outcome(rate, rate < 500, rate >= 500))
        assert "the generator is the limit" in capacity.summary(SEARCH, probes)

    @pytest.mark.parametrize(
        ("latencies", "changes", "held"),
        [
            ([0.01] * 600, {}, True),
            ([0.01] * 500 + [0.03] * 100, {}, False),
            ([0.01] * 400, {}, False),
            ([0.01] * 600, {"failed": 1}, False),
            ([0.01] * 600, {"invalid": ["xor: the generator itself was late"]}, False),
            ([0.01] * 600, {"faults": ["xor"]}, False),
        ],
    )
    def test_a_rate_is_held_in_every_window_or_not_at_all(
        self, latencies: list[float], changes: dict[str, object], held: bool
    ) -> None:
        rows = np.array([[n / 100, latency, 0.0] for n, latency in enumerate(latencies)])
        document = {
            "scenarios": {"xor": {"failed": changes.pop("failed", 0)}},
            "invalid": [],
            "faults": [],
            "server": {},
        } | changes
        probe = capacity.evaluate(SEARCH, 100, rows, document, Outcome.PASSED)
        assert probe.held is held, probe.reason

    def test_what_it_leaves_behind(self, tmp_path: Path) -> None:
        probes = capacity.find(SEARCH, lambda rate: outcome(rate, rate <= 777))
        capacity.write(SEARCH, probes, tmp_path)
        document = json.loads((tmp_path / "capacity.json").read_text())
        assert 700 < document["capacity"] <= 777
        assert "<svg" in (tmp_path / "capacity.html").read_text()

    @pytest.mark.parametrize("text", ["p99", "p99=25", "p100=1ms", "p99=0ms", "99=1ms"])
    def test_an_objective_that_cannot_be_read(self, text: str) -> None:
        with pytest.raises(ValueError, match="p99=25ms"):
            capacity.Objective.parse(text)

    def test_seconds(self) -> None:
        assert capacity.Objective.parse("p99.9=1.5s") == capacity.Objective(99.9, 1500)


def leave(directory: Path, factor: float, failed: int = 0, invalid: str = "") -> Path:
    rng = np.random.default_rng(1)
    directory.mkdir()
    sent = np.sort(rng.uniform(0, 30, 6000))
    latency = factor * rng.lognormal(-5, 0.4, 6000)
    rows = np.stack([sent, latency, np.zeros(6000)], axis=1)
    np.savez(directory / report.LATENCIES, xor=rows)
    document = {
        "invalid": [invalid] if invalid else [],
        "scenarios": {"xor": {"requests": 6000, "failed": failed}},
    }
    (directory / report.RESULTS).write_text(json.dumps(document))
    return directory


class TestCompare:
    @pytest.mark.parametrize(
        ("factor", "failed", "worse"),
        [
            (1.0, 0, set()),
            (0.5, 0, set()),
            (1.05, 0, set()),
            (1.5, 0, {"p50 ms", "p99 ms"}),
            (1.0, 1, {"errors"}),
        ],
    )
    def test_worse_is_beyond_tolerance_and_chance(
        self, tmp_path: Path, factor: float, failed: int, worse: set[str]
    ) -> None:
        before, after = leave(tmp_path / "a", 1.0), leave(tmp_path / "b", factor, failed)
        found = compare.compare(before, after, tolerance=0.1)
        assert {d.figure for d in found if d.worse} == worse
        assert all(d.low <= d.ratio <= d.high for d in found)
        assert ("WORSE" in compare.text(found)) is bool(worse)

    def test_what_cannot_be_compared(self, tmp_path: Path) -> None:
        good = leave(tmp_path / "a", 1.0)
        with pytest.raises(compare.CompareError, match="holds no results"):
            compare.compare(good, tmp_path / "none", 0.1)
        with pytest.raises(compare.CompareError, match="was late"):
            compare.compare(good, leave(tmp_path / "late", 1.0, invalid="was late"), 0.1)
