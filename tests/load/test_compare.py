"""Two runs compared, and the intervals that decide."""

import json
from pathlib import Path

import numpy as np
import pytest

from loadtest import compare, report
from loadtest.proportions import Proportion, design_effect, ratio_interval
from loadtest.recorder import COLUMNS, FAILED, LATENCY, SENT

REQUESTS, SECONDS = 6000, 30


def write_run(
    directory: Path,
    *,
    slower: float = 1.0,
    failed: int = 0,
    failed_within: float = SECONDS,
    invalid: str = "",
) -> Path:
    """Results of 6,000 requests over 30 s; those that failed lie evenly in the first seconds."""
    rng = np.random.default_rng(1)
    directory.mkdir()
    rows = np.zeros((REQUESTS, COLUMNS))
    rows[:, SENT] = np.linspace(0, SECONDS, REQUESTS, endpoint=False)
    rows[:, LATENCY] = slower * rng.lognormal(-5, 0.4, REQUESTS)
    last = int(REQUESTS * failed_within / SECONDS)
    rows[np.linspace(0, last, failed, endpoint=False, dtype=int), FAILED] = 1
    np.savez(directory / report.LATENCIES, xor=rows)
    document = {"invalid": [invalid] if invalid else []}
    (directory / report.RESULTS).write_text(json.dumps(document))
    return directory


def worse(before: Path, after: Path, tolerance: float = 0.1) -> set[str]:
    found = compare.compare(before, after, tolerance)
    assert all(d.low <= d.ratio <= d.high for d in found)
    figures = {d.figure for d in found if d.worse}
    assert ("WORSE" in compare.text(found)) is bool(figures)
    return figures


class TestCompare:
    @pytest.mark.parametrize(
        ("slower", "expected"),
        [(1.0, set()), (0.5, set()), (1.05, set()), (1.5, {"p50 ms", "p99 ms"})],
    )
    def test_latency(self, tmp_path: Path, slower: float, expected: set[str]) -> None:
        after = write_run(tmp_path / "b", slower=slower)
        assert worse(write_run(tmp_path / "a"), after) == expected

    @pytest.mark.parametrize(
        ("before", "after", "expected"),
        [
            (0, 0, set()),
            (0, 1, set()),  # by chance: as likely in either run
            (0, 3, set()),
            (0, 20, {"errors"}),
            (10, 14, set()),
            (14, 10, set()),
            (60, 60, set()),
            (60, 66, set()),  # within the tolerance
            (60, 150, {"errors"}),
            (6000, 6000, set()),
        ],
    )
    def test_errors(self, tmp_path: Path, before: int, after: int, expected: set[str]) -> None:
        first = write_run(tmp_path / "a", failed=before)
        second = write_run(tmp_path / "b", failed=after)
        assert worse(first, second) == expected

    def test_tolerance_of_errors(self, tmp_path: Path) -> None:
        """2.5 times as many are worse than twice as many only by chance."""
        first = write_run(tmp_path / "a", failed=60)
        second = write_run(tmp_path / "b", failed=150)
        assert worse(first, second, tolerance=0.5) == {"errors"}
        assert worse(first, second, tolerance=1.0) == set()

    def test_errors_of_one_second_are_one_mishap(self, tmp_path: Path) -> None:
        before = write_run(tmp_path / "a")
        assert worse(before, write_run(tmp_path / "b", failed=20)) == {"errors"}
        assert worse(before, write_run(tmp_path / "c", failed=20, failed_within=1)) == set()

    def test_runs_that_cannot_be_compared(self, tmp_path: Path) -> None:
        good = write_run(tmp_path / "a")
        with pytest.raises(compare.CompareError, match="holds no results"):
            compare.compare(good, tmp_path / "none", 0.1)
        with pytest.raises(compare.CompareError, match="was late"):
            compare.compare(good, write_run(tmp_path / "late", invalid="was late"), 0.1)
        old = write_run(tmp_path / "old")
        np.savez(old / report.LATENCIES, xor=np.zeros((10, 3)))
        with pytest.raises(compare.CompareError, match="old was written by another version"):
            compare.compare(old, good, 0.1)


class TestProportions:
    @pytest.mark.parametrize(
        ("events", "trials", "low", "high"),
        [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ],
    )
    def test_score_interval(self, events: int, trials: int, low: float, high: float) -> None:
        """The values of Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
        assert Proportion(events, trials).interval() == pytest.approx((low, high), abs=5e-5)

    @pytest.mark.parametrize(
        ("before", "after", "trials"),
        [(0.001, 0.001, 6000), (0.001, 0.002, 6000), (0.01, 0.02, 3000), (0.3, 0.4, 200)],
    )
    def test_ratio_interval_covers_the_true_ratio(
        self, before: float, after: float, trials: int
    ) -> None:
        """In at least 95 % of 2,000 samples, give or take three standard errors, 1.5 %."""
        rng = np.random.default_rng(0)
        pairs = rng.binomial(trials, [before, after], size=(2000, 2)).tolist()
        intervals = [ratio_interval(Proportion(a, trials), Proportion(b, trials)) for a, b in pairs]
        covered = [low <= after / before <= high for low, high in intervals]
        assert np.mean(covered) >= 0.935

    def test_ratio_interval_of_no_events(self) -> None:
        assert ratio_interval(Proportion(0, 100), Proportion(0, 100)) == (0.0, np.inf)

    def test_design_effect(self) -> None:
        trials = np.full(4, 100.0)
        assert design_effect(np.array([5.0, 5, 5, 5]), trials) == 1
        assert design_effect(np.zeros(4), trials) == 1
        # (15² + 3·5²) · 4/3 between blocks, over 400 · 0.05 · 0.95.
        assert design_effect(np.array([20.0, 0, 0, 0]), trials) == pytest.approx(400 / 19)
