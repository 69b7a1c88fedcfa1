"""Cross-check: the server's counters against what the generator sent."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import requests
from prometheus_client.parser import text_string_to_metric_families

from loadtest.recorder import Results

_NO_ANSWER = "0"
_PREFIXES = ("inference_", "serving_responses_total", "serving_refused_total")
Sample = tuple[str, tuple[tuple[str, str], ...]]


class ScrapeError(Exception):
    """The server's metrics cannot be read; the message says where and why."""


def scrape(url: str) -> dict[Sample, float]:
    """Scrape what the handler and the front door count: every sample, by name and labels.

    Raises:
        ScrapeError: there is no answer, or it has none of these metrics.
    """
    try:
        response = requests.get(url, timeout=10)
        response.raise_for_status()
    except requests.RequestException as error:
        raise ScrapeError(f"the server's metrics at {url} cannot be read: {error}") from None
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
        if sample.name.startswith(_PREFIXES)
    }
    if not any(name.startswith("inference_") for name, _ in samples):
        raise ScrapeError(f"{url} has no inference_ metrics: is it the telemetry address?")
    return samples


@dataclass
class ModelSide:
    """The server's counters of one model over a run.

    Attributes:
        codes: requests that reached the handler, by status.
        answers: answers of the front door, by class of status such as `2xx`; the handler's are
            among them.
        refused: requests that the front door refused, as their turn did not come.
        batch: mean number of requests in a batch.
        milliseconds: means, of a batch in each stage and as a whole (`batch`), and of a request
            between the generator and the handler (`queue`).
    """

    codes: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    batch: float = 0.0
    milliseconds: dict[str, float] = field(default_factory=dict)


def difference(
    before: Mapping[Sample, float], after: Mapping[Sample, float]
) -> dict[str, ModelSide]:
    """What was served between two scrapes, by model."""
    sums: dict[tuple[str, str], float] = {}
    models: dict[str, ModelSide] = {}
    for (name, labels), value in after.items():
        grown = value - before.get((name, labels), 0.0)
        by_name = dict(labels)
        model = by_name["model"]
        side = models.setdefault(model, ModelSide())
        if name == "inference_requests_total" and grown:
            side.codes[by_name["code"]] += round(grown)
        elif name == "serving_responses_total" and grown:
            side.answers[by_name["code"]] += round(grown)
        elif name == "serving_refused_total":
            side.refused += round(grown)
        elif name.endswith(("_sum", "_count")):
            key = name + by_name.get("stage", "")
            sums[model, key] = sums.get((model, key), 0.0) + grown
    for model, side in models.items():

        def mean(name: str, stage: str = "", model: str = model) -> float:
            count = sums.get((model, f"inference_{name}_count{stage}"), 0.0)
            return sums[model, f"inference_{name}_sum{stage}"] / count if count else 0.0

        side.batch = mean("batch_requests")
        side.milliseconds = {
            "queue": 1e3 * mean("queue_seconds"),
            **{s: 1e3 * mean("stage_seconds", s) for s in ("parse", "forward", "respond")},
            "batch": 1e3 * mean("batch_seconds"),
        }
    return models


def mismatches(results: Results, served: Mapping[str, ModelSide]) -> list[str]:
    """Differences between the two sides in words; empty if every request is accounted for.

    A scenario's model is its name up to the first hyphen. A request without an answer may have been
    served or not.
    """
    found: list[str] = []
    for model in sorted({scenario.partition("-")[0] for scenario in results.scenarios}):
        sent: Counter[str] = Counter()
        for name, scenario in results.scenarios.items():
            if name.partition("-")[0] == model:
                sent.update(scenario.codes)
        found += _mismatches(model, sent, served.get(model, ModelSide()).answers)
    return found


def _mismatches(model: str, codes: Counter[str], served: Counter[str]) -> Iterable[str]:
    unanswered = codes.pop(_NO_ANSWER, 0)
    sent: Counter[str] = Counter()
    for code, count in codes.items():
        sent[f"{code[0]}xx"] += count
    more = 0
    for code in sorted(sent.keys() | served.keys()):
        surplus = served[code] - sent[code]
        if surplus < 0:
            yield f"{model}: {sent[code]} answers {code} came, the server counted {served[code]}"
        more += max(surplus, 0)
    if more > unanswered:
        yield (
            f"{model}: the server counted {more} requests more than were answered, and "
            f"{unanswered} had no answer: something else sent requests, or answers were lost"
        )
