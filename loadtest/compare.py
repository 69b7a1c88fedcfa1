"""Compares two runs: is the second worse, beyond chance and a tolerance?"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadtest import report
from loadtest.proportions import Proportion, design_effect, ratio_interval
from loadtest.recorder import COLUMNS, FAILED, LATENCY, SENT, Floats, percentile

_RESAMPLES = 500
_PERCENTILES = (50.0, 99.0)


class CompareError(Exception):
    """A run cannot be compared; the message says which and why."""


@dataclass(frozen=True)
class Difference:
    """One figure of one scenario.

    Attributes:
        before, after: the figure in either run, in milliseconds; for errors, a share.
        low, high: the 95 % confidence interval of after ÷ before; infinite above if `before` may
            be 0.
        tolerance: relative.
    """

    scenario: str
    figure: str
    before: float
    after: float
    low: float
    high: float
    tolerance: float

    @property
    def ratio(self) -> float:
        """After ÷ before; 1 if both are 0."""
        if not self.before:
            return math.inf if self.after else 1.0
        return self.after / self.before

    @property
    def worse(self) -> bool:
        """Whether the whole interval lies above 1 + the tolerance."""
        return self.low > 1 + self.tolerance


def read(directory: Path) -> dict[str, Floats]:
    """Every request of a run by scenario, float64 [n, 4].

    Raises:
        CompareError: the results are missing or of another version, or the run was invalid.
    """
    try:
        document = json.loads((directory / report.RESULTS).read_text())
        with np.load(directory / report.LATENCIES) as latencies:
            scenarios: dict[str, Floats] = {name: latencies[name] for name in latencies}
    except (OSError, ValueError) as error:
        raise CompareError(f"{directory} holds no results of a run: {error}") from None
    if document["invalid"]:
        raise CompareError(f"{directory} is an invalid run: {'; '.join(document['invalid'])}")
    for name, rows in scenarios.items():
        if rows.shape[1:] != (COLUMNS,):
            raise CompareError(
                f"{directory} was written by another version of the load test: {name} has shape "
                f"{rows.shape} in {report.LATENCIES}, expected (n, {COLUMNS})"
            )
    return scenarios


def compare(before: Path, after: Path, tolerance: float, seed: int = 0) -> list[Difference]:
    """p50, p99 and the share of errors of every scenario in both runs.

    A figure is worse if the whole 95 % interval of after ÷ before lies above 1 + `tolerance`. That
    goes for errors as well; if there were none before, 0.25 is exceeded from about 6 errors on.

    The requests of one second share their queue and its mishaps, so seconds, and not requests, are
    taken as independent: intervals would be too narrow otherwise. For latencies whole seconds are
    resampled (the block bootstrap, Künsch 1989). A run without errors resampled is always one
    without errors, so for errors it is an interval of proportions instead, with the sample size
    reduced by how much errors cluster in seconds.

    Raises:
        CompareError: a run cannot be read, or they share no scenario.
    """
    old, new = read(before), read(after)
    shared = [name for name in old if name in new]
    if not shared:
        raise CompareError(f"{before} and {after} have no scenario in common")
    rng = np.random.default_rng(seed)
    found = []
    for name in shared:
        runs = (old[name], new[name])
        resampled_before, resampled_after = (_resample(rows, rng) for rows in runs)
        ratios = resampled_after / resampled_before
        for index, percent in enumerate(_PERCENTILES):
            then, now = (1e3 * percentile(rows[:, LATENCY], percent) for rows in runs)
            low, high = np.percentile(ratios[:, index], [2.5, 97.5]).tolist()
            found.append(Difference(name, f"p{percent:g} ms", then, now, low, high, tolerance))
        then, now = (float(rows[:, FAILED].mean()) for rows in runs)
        low, high = ratio_interval(*_errors(*runs))
        found.append(Difference(name, "errors", then, now, low, high, tolerance))
    return found


def _second(rows: Floats) -> NDArray[np.intp]:
    """The second of the run in which each request was to be sent."""
    second: NDArray[np.intp] = (rows[:, SENT] - rows[:, SENT].min()).astype(np.intp)
    return second


def _resample(rows: Floats, rng: np.random.Generator) -> Floats:
    """float64 [resamples, percentiles] of latency."""
    second = _second(rows)
    order = np.argsort(second, kind="stable")
    blocks = np.split(rows[order, LATENCY], np.flatnonzero(np.diff(second[order])) + 1)
    chosen = rng.integers(len(blocks), size=(_RESAMPLES, len(blocks)))
    return np.array(
        [np.percentile(np.concatenate([blocks[b] for b in some]), _PERCENTILES) for some in chosen]
    )


def _errors(*runs: Floats) -> list[Proportion]:
    """Failed requests of each run, counted as if they were independent.

    The larger design effect is taken for all: a run with few errors cannot show its own.
    """
    counts: list[tuple[Floats, Floats]] = []
    for rows in runs:
        _, block, trials = np.unique(_second(rows), return_inverse=True, return_counts=True)
        failed = np.bincount(block, weights=rows[:, FAILED])
        counts.append((failed.astype(np.float64), trials.astype(np.float64)))
    effect = max(design_effect(failed, trials) for failed, trials in counts)
    return [Proportion(failed.sum() / effect, trials.sum() / effect) for failed, trials in counts]


def text(differences: list[Difference]) -> str:
    """A table for the terminal."""
    head = ["scenario", "figure", "before", "after", "ratio", "95 % interval", ""]
    rows = [
        [
            d.scenario,
            d.figure,
            f"{d.before:.4g}",
            f"{d.after:.4g}",
            f"{d.ratio:.3f}",
            f"{d.low:.3f} to {d.high:.3f}",
            "WORSE" if d.worse else "",
        ]
        for d in differences
    ]
    return report.table(head, rows)
