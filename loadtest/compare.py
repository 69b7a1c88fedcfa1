"""Two runs side by side: is the second worse, beyond chance and a tolerance?"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadtest import report
from loadtest.recorder import Floats, percentile

_RESAMPLES = 500
_PERCENTILES = (50.0, 99.0)


class CompareError(Exception):
    """A run cannot be compared; the message says which and why."""


@dataclass(frozen=True)
class Difference:
    """One figure of one scenario.

    Attributes:
        before, after: the figure in either run; milliseconds, or a share for errors.
        ratio: after ÷ before.
        low, high: the 95 % confidence interval of the ratio.
        worse: whether the whole interval lies beyond the tolerance.
    """

    scenario: str
    figure: str
    before: float
    after: float
    ratio: float
    low: float
    high: float
    worse: bool


def read(directory: Path) -> tuple[dict[str, Any], dict[str, Floats]]:
    """What a run left: `results.json`, and float64 [n, 3] for each scenario.

    Raises:
        CompareError: it is not there, or the run was invalid.
    """
    try:
        document = json.loads((directory / report.RESULTS).read_text())
        with np.load(directory / report.LATENCIES) as latencies:
            rows = {name: latencies[name] for name in latencies}
    except (OSError, ValueError) as error:
        raise CompareError(f"{directory} holds no results of a run: {error}") from None
    if document["invalid"]:
        raise CompareError(f"{directory} is of an invalid run: {'; '.join(document['invalid'])}")
    return document, rows


def compare(before: Path, after: Path, tolerance: float, seed: int = 0) -> list[Difference]:
    """p50 and p99 of every scenario in both runs, and errors.

    The interval is from resampling whole seconds: requests of one second share their queue, so
    resampling them one by one would make it too narrow (the block bootstrap, Künsch 1989).

    Raises:
        CompareError: a run cannot be read, or they share no scenario.
    """
    (old_document, old), (new_document, new) = read(before), read(after)
    shared = [name for name in old if name in new]
    if not shared:
        raise CompareError(f"{before} and {after} have no scenario in common")
    rng = np.random.default_rng(seed)
    found = []
    for name in shared:
        samples = [_resample(rows, rng) for rows in (old[name], new[name])]
        for index, percent in enumerate(_PERCENTILES):
            then, now = (1e3 * percentile(rows[:, 1], percent) for rows in (old[name], new[name]))
            ratios = samples[1][:, index] / samples[0][:, index]
            low, high = np.percentile(ratios, [2.5, 97.5])
            worse = bool(low > 1 + tolerance)
            figure = f"p{percent:g} ms"
            ratio = now / then
            found.append(Difference(name, figure, then, now, ratio, float(low), float(high), worse))
        then, now = (
            document["scenarios"][name]["failed"] / document["scenarios"][name]["requests"]
            for document in (old_document, new_document)
        )
        ratio = now / then if then else (math.inf if now else 1.0)
        found.append(Difference(name, "errors", then, now, ratio, ratio, ratio, now > then))
    return found


def _resample(rows: Floats, rng: np.random.Generator) -> Floats:
    """float64 [resamples, percentiles] of latency."""
    order = np.argsort(rows[:, 0], kind="stable")
    seconds = np.floor(rows[order, 0] - rows[order[0], 0])
    blocks = np.split(rows[order, 1], np.flatnonzero(np.diff(seconds)) + 1)
    chosen = rng.integers(len(blocks), size=(_RESAMPLES, len(blocks)))
    return np.array(
        [np.percentile(np.concatenate([blocks[b] for b in some]), _PERCENTILES) for some in chosen]
    )


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
