"""Objectives of a run, and the verdict on each."""

import enum
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtest.recorder import LATENCY, Floats, Results, Scenario, percentile

FILE = Path(__file__).with_name("objectives.toml")
CONFIDENCE = 0.99
_OTHERS = ("error_ratio", "accuracy", "min_rate")
_LATENCY = re.compile(r"p(\d{1,2}(?:\.\d+)?)")


class ObjectiveError(Exception):
    """The objectives cannot be used; the message says what is wrong with which."""


class Verdict(enum.Enum):
    """The verdict on one objective, or on a run."""

    PASSED = "passed"
    FAILED = "FAILED"
    UNDECIDED = "not enough samples"


class Outcome(enum.IntEnum):
    """The exit code of a run."""

    PASSED = 0
    FAILED = 1
    INVALID = 2


@dataclass(frozen=True)
class Judgement:
    """One objective of one scenario.

    Attributes:
        limit, measured: in the objective's unit: milliseconds, a share, or requests a second.
        note: why the verdict is uncertain.
    """

    scenario: str
    objective: str
    limit: float
    measured: float
    verdict: Verdict
    note: str = ""


def load(file: Path = FILE) -> dict[str, dict[str, float]]:
    """Objectives by scenario.

    Raises:
        ObjectiveError: the file is missing or not TOML, or an objective is unknown or no number.
    """
    try:
        document = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ObjectiveError(f"{file}: {error}") from None
    for scenario, objectives in document.items():
        if not isinstance(objectives, dict):
            raise ObjectiveError(f"{file}: {scenario} is not a table of objectives")
        for name, limit in objectives.items():
            check_name(name, f"{file}, [{scenario}]")
            is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
            if not is_number or not math.isfinite(limit):
                raise ObjectiveError(f"{file}, [{scenario}]: {name} is not a number: {limit!r}")
    return document


def check_name(name: str, where: str) -> None:
    """Check the name of an objective.

    Raises:
        ObjectiveError: the name is unknown; the message lists those that exist.
    """
    if name not in _OTHERS and not _LATENCY.fullmatch(name):
        known = "p50, p95, p99, p99.9 (or any other percentile), " + ", ".join(_OTHERS)
        raise ObjectiveError(f"{where}: unknown objective {name!r}; expected one of {known}")


def judge(results: Results, objectives: Mapping[str, Mapping[str, float]]) -> list[Judgement]:
    """Judge every objective of every scenario that had requests.

    Raises:
        ObjectiveError: none of these scenarios has objectives.
    """
    judged = [name for name in results.scenarios if name in objectives]
    if not judged:
        raise ObjectiveError(
            f"no objectives for {', '.join(results.scenarios) or 'a run without requests'}; "
            f"there are objectives for {', '.join(objectives)}"
        )
    return [
        _judge(name, results.scenarios[name], results.seconds, objective, limit)
        for name in judged
        for objective, limit in objectives[name].items()
    ]


def _judge(
    name: str, scenario: Scenario, seconds: float, objective: str, limit: float
) -> Judgement:
    if match := _LATENCY.fullmatch(objective):
        return judge_latency(name, scenario.rows[:, LATENCY], float(match[1]), limit)
    if objective == "min_rate":
        answered = scenario.requests - scenario.counters["failed"]
        measured, good = answered / seconds, answered / seconds >= limit
    elif objective == "accuracy":
        measured = scenario.accuracy if scenario.accuracy is not None else math.nan
        good = measured >= limit
    else:
        measured = scenario.counters["failed"] / max(scenario.requests, 1)
        good = measured <= limit
    return Judgement(name, objective, limit, measured, Verdict.PASSED if good else Verdict.FAILED)


def judge_latency(name: str, latencies: Floats, percent: float, limit: float) -> Judgement:
    """Judge a percentile against its limit in milliseconds, with 99 % confidence.

    It is not enough that the percentile of the sample is under the limit. So few requests must be
    over it that, if the true share over it were as large as the objective allows, so few would be
    seen with a probability of at most 1 %. This is the early-stopping criterion of MLPerf Inference
    (https://github.com/mlcommons/inference_policies, "Early stopping"), an exact binomial bound;
    for p99 it takes 459 requests with none over the limit, 662 with one.
    """
    measured = percentile(latencies, percent) * 1e3
    over = int((latencies * 1e3 > limit).sum())
    verdict, note = Verdict.PASSED, ""
    if measured > limit:
        verdict = Verdict.FAILED
    elif not enough_samples(len(latencies), over, percent):
        verdict = Verdict.UNDECIDED
        note = f"{over} of {len(latencies)} over the limit: {CONFIDENCE:.0%} confidence takes more"
    return Judgement(name, f"p{percent:g}", limit, measured, verdict, note)


def enough_samples(count: int, over: int, percent: float) -> bool:
    """Whether `over` of `count` shows with 99 % confidence that a percentile is under a limit."""
    return _binomial_cdf(over, count, 1 - percent / 100) <= 1 - CONFIDENCE


def _binomial_cdf(most: int, count: int, probability: float) -> float:
    """Probability of at most `most` events in `count` trials."""
    if most >= count:
        return 1.0
    log_p, log_q = math.log(probability), math.log1p(-probability)
    of_all = math.lgamma(count + 1)
    return math.fsum(
        math.exp(
            of_all
            - math.lgamma(k + 1)
            - math.lgamma(count - k + 1)
            + k * log_p
            + (count - k) * log_q
        )
        for k in range(most + 1)
    )


def overall(judgements: list[Judgement]) -> Verdict:
    """The worst verdict; failed is worse than undecided."""
    verdicts = {judgement.verdict for judgement in judgements}
    for verdict in (Verdict.FAILED, Verdict.UNDECIDED):
        if verdict in verdicts:
            return verdict
    return Verdict.PASSED
