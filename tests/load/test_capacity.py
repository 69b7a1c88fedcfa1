"""The search for the capacity, with runs that are made up."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest import capacity
from loadtest.__main__ import main
from loadtest.objectives import Outcome
from loadtest.recorder import Floats

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
DOCUMENT: dict[str, Any] = {"invalid": [], "faults": [], "server": {}}


def outcome(rate: float, held: bool, generator_limited: bool = False) -> capacity.Probe:
    reason = "" if held else "over"
    return capacity.Probe(
        rate, rate, {"p50": 1, "p95": 1, "p99": 1}, [1.0], 1.0, held, reason, generator_limited
    )


def requests(latencies: list[float], failed: int = 0) -> Floats:
    """Requests at 100 a second, of which the last ones failed."""
    count = len(latencies)
    return np.array(
        [[n / 100, latencies[n], 0.0, float(n >= count - failed)] for n in range(count)]
    )


def evaluate(search: capacity.Search, rows: Floats, **changes: Any) -> capacity.Probe:
    return capacity.evaluate(search, 100, rows, DOCUMENT | changes, Outcome.PASSED)


class TestFind:
    @pytest.mark.parametrize("limit", [130, 777, 3999, 4000])
    def test_closes_in_on_the_limit(self, limit: float) -> None:
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

    def test_summary_names_the_generator_as_the_limit(self) -> None:
        probes = capacity.find(SEARCH, lambda rate: outcome(rate, rate < 500, rate >= 500))
        assert "the generator is the limit" in capacity.summary(SEARCH, probes)


class TestEvaluate:
    @pytest.mark.parametrize(
        ("rows", "changes", "held"),
        [
            (requests([0.01] * 600), {}, True),
            (requests([0.01] * 500 + [0.03] * 100), {}, False),
            (requests([0.01] * 400), {}, False),
            (requests([0.01] * 600, failed=1), {}, False),
            (requests([0.01] * 600), {"invalid": ["xor: the generator itself was late"]}, False),
            (requests([0.01] * 600), {"faults": ["xor"]}, False),
        ],
    )
    def test_every_window_must_hold(
        self, rows: Floats, changes: dict[str, Any], held: bool
    ) -> None:
        probe = evaluate(SEARCH, rows, **changes)
        assert probe.held is held, probe.reason

    def test_growing_queue(self) -> None:
        """100 requests a second at a server of 80: every answer comes, but later and later."""
        search = dataclasses.replace(SEARCH, objective=capacity.Objective(99, 5000))
        probe = evaluate(search, requests([(n + 1) / 80 - n / 100 for n in range(600)]))
        assert max(probe.windows_ms) < 5000
        assert not probe.held
        assert probe.reason == "the queue grew: 159 answers to 200 requests in a window"
        assert probe.answered == pytest.approx(80, abs=0.5)

    def test_failures_are_not_answers(self) -> None:
        assert evaluate(SEARCH, requests([0.01] * 600, failed=300)).answered == 50

    def test_server_that_dies_after_the_first_window(self) -> None:
        """A window without requests has no percentile: infinity is not JSON."""
        probe = evaluate(SEARCH, requests([0.01] * 200))
        assert probe.windows_ms == pytest.approx([10])
        assert probe.reason == "no request in a window"

    def test_fewer_arrivals_than_the_rate_are_not_a_queue(self) -> None:
        """Poisson arrivals at 3 a second differ from 6 in a window of 2 s by more than a tenth."""
        search = dataclasses.replace(SEARCH, objective=capacity.Objective(50, 25))
        rows = requests([0.01] * 600)[::33]
        assert capacity.evaluate(search, 4, rows, DOCUMENT, Outcome.PASSED).held


def test_results(tmp_path: Path) -> None:
    probes = capacity.find(SEARCH, lambda rate: outcome(rate, rate <= 777))
    capacity.write(SEARCH, probes, tmp_path)
    document = json.loads((tmp_path / "capacity.json").read_text())
    assert 700 < document["capacity"] <= 777
    page = (tmp_path / "capacity.html").read_text()
    assert "<svg" in page
    assert capacity.summary(SEARCH, probes) in page


class TestOptions:
    @pytest.mark.parametrize("text", ["p99", "p99=25", "p100=1ms", "p99=0ms", "99=1ms"])
    def test_invalid_objective(self, text: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stopped:
            main(["capacity", "--objective", text])
        assert stopped.value.code == 2
        expected = f"expected an objective such as p99=25ms, got {text!r}"
        assert expected in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("option", "value"),
        [("--low", "0"), ("--high", "inf"), ("--precision", "-1"), ("--windows", "0")],
    )
    def test_number_that_makes_no_search(
        self, option: str, value: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """With `--low 0` it would double 0 without end."""
        with pytest.raises(SystemExit) as stopped:
            main(["capacity", "--objective", "p99=25ms", option, value])
        assert stopped.value.code == 2
        assert f"argument {option}: expected" in capsys.readouterr().err

    def test_objective_in_seconds(self) -> None:
        assert capacity.Objective.parse("p99.9=1.5s") == capacity.Objective(99.9, 1500)
