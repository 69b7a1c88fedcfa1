"""What a run has to hold to, and whether it did."""

import enum
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtest.recorder import Floats, Results, Scenario, percentile

FILE = Path(__file__).with_name("objectives.toml")
CONFIDENCE = 0.99
_OTHERS = ("error_ratio", "accuracy", "min_rate")
_LATENCY = re.compile(r"p(\d{1,2}(?:\.\d+)?)")


class ObjectiveError(Exception):
    """The objectives cannot be used; the message names what is wrong, and what there is."""


class Verdict(enum.Enum):
    """Of one objective, or of a run."""

    PASSED = "passed"
    FAILED = "FAILED"
    UNDECIDED = "not enough samples"


class Outcome(enum.IntEnum):
    """Exit code of a run."""

    PASSED = 0
    FAILED = 1
    INVALID = 2


@dataclass(frozen=True)
class Judgement:
    """One objective of one scenario.

    Attributes:
        limit, measured: in the objective's own unit: milliseconds, a share, requests a second.
        note: what limits the verdict.
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
        ObjectiveError: no such file, not TOML, or an objective that there is not.
    """
    try:
        document = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ObjectiveError(f"{file}: {error}") from None
    for scenario, objectives in document.items():
        if not isinstance(objectives, dict):
            raise ObjectiveError(f"{file}: [{scenario}] is no table of objectives")
        for name, limit in objectives.items():
            check(name, f"{file}, [{scenario}]")
            if isinstance(limit, bool) or not isinstance(limit, int | float):
                raise ObjectiveError(f"{file}, [{scenario}]: {name} is no number: {limit!r}")
    return document


def check(name: str, where: str) -> None:
    """Refuse the name of an objective that there is not.

    Raises:
        ObjectiveError: with the names that there are.
    """
    if name not in _OTHERS and not _LATENCY.fullmatch(name):
        known = "p50, p95, p99, p99.9 (or any other percentile), " + ", ".join(_OTHERS)
        raise ObjectiveError(f"{where}: there is no objective {name!r}; there are {known}")


def judge(results: Results, objectives: Mapping[str, Mapping[str, float]]) -> list[Judgement]:
    """Every objective of every scenario that had requests.

    Raises:
        ObjectiveError: not one of the scenarios that had requests has objectives.
    """
    judged = [name for name in results.scenarios if name in objectives]
    if not judged:
        raise ObjectiveError(
            f"no objectives for {', '.join(results.scenarios) or 'a run without requests'}; "
            f"there are some for {', '.join(objectives)}"
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
        return judge_latency(name, scenario.rows[:, 1], float(match[1]), limit)
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
    """A percentile against its limit, in milliseconds, with confidence.

    Passing takes more than that the percentile of the sample is under the limit: so few of the
    requests are over it that, were the true share over it as large as the objective allows, as few
    would be seen with a probability of at most 1 %. That is the early-stopping criterion of MLPerf
    Inference (https://github.com/mlcommons/inference_policies, "Early stopping"), an exact binomial
    bound; for p99 it takes 459 requests with none over, 662 with one.
    """
    measured = percentile(latencies, percent) * 1e3
    over = int((latencies * 1e3 > limit).sum())
    verdict, note = Verdict.PASSED, ""
    if measured > limit:
        verdict = Verdict.FAILED
    elif not enough_samples(len(latencies), over, percent):
        verdict = Verdict.UNDECIDED
        note = f"{over} of {len(latencies)} over the limit do not show it with {CONFIDENCE:.0%}"
    return Judgement(name, f"p{percent:g}", limit, measured, verdict, note)


def enough_samples(count: int, over: int, percent: float) -> bool:
    """Whether `over` of `count` shows, with 99 % confidence, that a percentile is under a limit."""
    return _binomial_cdf(over, count, 1 - percent / 100) <= 1 - CONFIDENCE


def _binomial_cdf(most: int, count: int, probability: float) -> float:
    """Probability of at most so many of `count`, each with this probability."""
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
    """The worst of them; failed is worse than undecided."""
    verdicts = {judgement.verdict for judgement in judgements}
    for verdict in (Verdict.FAILED, Verdict.UNDECIDED):
        if verdict in verdicts:
            return verdict
    return Verdict.PASSED
