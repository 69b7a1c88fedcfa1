"""Metrics of a worker, through prometheus-client.

Under `python -m server` each worker writes to files of its own in one directory of the run
(prometheus-client's multiprocess mode), which the server process reads when it is scraped. Under a
plain TorchServe nothing is exposed.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from handler.card import ModelCard
from handler.errors import RequestError, all_errors

SECONDS = (250e-6, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
STAGES = ("parse", "forward", "respond", "explain")
# Of requests: for one instance, and for several or for explanations, which take many forwards.
SIZES = ("one", "several")
_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128)
# Sums are kept in steps of a millionth, so that up to 8e9 they have no rounding error: added up in
# another order, as the files of dead workers are, one would else be lower by its last bit, which
# Prometheus takes for a counter that began anew.
_STEPS = 2.0**20
_CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)


class Metrics:
    """The metrics of one model in one worker; every known label set exists from the start.

    Args:
        card: of the model.
        device: that it runs on, such as `cpu` or `cuda:0`.
        registry: of the metrics.
    """

    def __init__(
        self, card: ModelCard, device: str, registry: CollectorRegistry = REGISTRY
    ) -> None:
        model = (card.name, card.version)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, ("model", "version", *labels), registry=registry)

        def histogram(
            name: str, text: str, *labels: str, buckets: Iterable[float] = SECONDS
        ) -> Histogram:
            names = ("model", "version", *labels)
            return Histogram(name, text, names, registry=registry, buckets=tuple(buckets))

        requests = counter("inference_requests_total", "Requests that reached the handler.", "code")
        codes = sorted({200} | {error.code for error in all_errors()})
        self._requests = {code: requests.labels(*model, code) for code in codes}
        rejected = counter("inference_rejected_total", "Requests refused, by reason.", "reason")
        reasons = sorted({error.reason for error in all_errors()})
        self._rejected = {reason: rejected.labels(*model, reason) for reason in reasons}
        predictions = counter("inference_predictions_total", "Answers, by label.", "label")
        self._predictions = [predictions.labels(*model, i) for i in range(len(card.classes))]
        self._explanations = counter(
            "inference_explanations_total", "Instances explained, which are not counted as answers."
        ).labels(*model)
        self._instances = counter("inference_instances_total", "Instances answered.").labels(*model)
        stages = histogram(
            "inference_stage_seconds",
            "Time of a batch in each stage, or of a request where it is explained.",
            "stage",
        )
        *self._stages, self._explain = (stages.labels(*model, stage) for stage in STAGES)
        self._batch = histogram("inference_batch_seconds", "Time of a batch.").labels(*model)
        self._queue = histogram(
            "inference_queue_seconds", "From X-Request-Start to the handler."
        ).labels(*model)
        self._request = histogram(
            "inference_request_seconds", "From X-Request-Start, else from its batch, to the answer."
        ).labels(*model)
        sized = histogram("inference_sized_request_seconds", "The same, by size.", "size")
        self._one, self._several = (sized.labels(*model, size) for size in SIZES)
        self._batch_requests = histogram(
            "inference_batch_requests", "Requests in a batch.", buckets=_REQUESTS
        ).labels(*model)
        self._confidence = histogram(
            "inference_confidence_ratio", "Probability of the label answered.", buckets=_CONFIDENCE
        ).labels(*model)
        info = Gauge(
            "inference_model_info",
            "The model that is served; always 1.",
            ("model", "version", "arch", "sha256", "device"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        info.labels(*model, card.architecture, card.torchscript_sha256, device).set(1)

    def batch(
        self,
        waits: Sequence[float | None],
        errors: Iterable[RequestError],
        several: Collection[int],
        seconds: float,
    ) -> None:
        """Record a batch that has been answered.

        Args:
            waits: for each request the seconds from X-Request-Start to the batch, if it had that.
            errors: of the requests that were refused.
            several: indices of the requests for more than a prediction of one instance.
            seconds: that the batch took.
        """
        size, refused = len(waits), 0
        for error in errors:
            self._requests[error.code].inc()
            self._rejected[error.reason].inc()
            refused += 1
        if size > refused:
            self._requests[200].inc(size - refused)
        observe_all(self._queue, (wait for wait in waits if wait is not None))
        latencies = [(wait or 0.0) + seconds for wait in waits]
        observe_all(self._request, latencies)
        if several:
            observe_all(self._several, (latencies[index] for index in several))
            latencies = [wait for index, wait in enumerate(latencies) if index not in several]
        observe_all(self._one, latencies)
        observe_all(self._batch_requests, (size,))
        observe_all(self._batch, (seconds,))

    def stages(self, *seconds: float) -> None:
        """Record the seconds that a batch spent in the first of `STAGES`, as far as it came."""
        for stage, duration in zip(self._stages, seconds, strict=False):
            observe_all(stage, (duration,))

    def explanations(self, instances: int, seconds: float) -> None:
        """Record a request of so many instances that took so long to explain."""
        self._explanations.inc(instances)
        observe_all(self._explain, (seconds,))

    def predictions(self, labels: list[int], confidences: list[float]) -> None:
        """Record the label of each answered instance, and that label's probability."""
        self._instances.inc(len(labels))
        for label in set(labels):
            self._predictions[label].inc(labels.count(label))
        observe_all(self._confidence, confidences)


def observe_all(histogram: Histogram, values: Iterable[float]) -> None:
    """Observe many values with one increment for each bucket that they fall into, and the sum.

    The sum is rounded to 2⁻²⁰.

    prometheus-client takes one value at a time, searches its bucket from the lowest on, and makes
    two increments for each; a batch has up to thousands.
    """
    bounds, buckets, sum_ = histogram._upper_bounds, histogram._buckets, histogram._sum  # noqa: SLF001
    counts: dict[int, int] = {}
    total = 0.0
    for value in values:
        bucket = bisect_left(bounds, value)
        counts[bucket] = counts.get(bucket, 0) + 1
        total += value
    for bucket, count in counts.items():
        buckets[bucket].inc(count)
    if counts:
        sum_.inc(round(total * _STEPS) / _STEPS)
