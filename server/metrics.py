"""What the server process knows of its parts and no worker does: readiness, restarts, memory."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from server.store import Archive
from server.torchserve import TorchServe

_MODEL = ("model", "version")
# The split whose predictions say what to expect of each label: the one looked at once.
_SPLIT = "test"


class Vitals(Collector):
    """The metrics of the server process, read when they are scraped.

    Args:
        archives: what is served.
        torchserve: the process that serves it.
        readiness: gives the status and report of `/readyz`.
    """

    def __init__(
        self,
        archives: Sequence[Archive],
        torchserve: TorchServe,
        readiness: Callable[[], tuple[int, dict[str, Any]]],
    ) -> None:
        self._archives = archives
        self._torchserve = torchserve
        self._readiness = readiness
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """All of them, in the text format."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing: the names are known without asking TorchServe."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read them."""
        _, report = self._readiness()
        ready = GaugeMetricFamily(
            "serving_model_ready", "Whether the model is ready, as /readyz says.", labels=_MODEL
        )
        workers = GaugeMetricFamily(
            "serving_workers", "Workers that have loaded the model.", labels=_MODEL
        )
        queued = GaugeMetricFamily(
            "serving_queued_requests", "Requests that wait for a worker.", labels=_MODEL
        )
        for key, model in report["models"].items():
            labels = (key.partition("/")[0], model["version"])
            ready.add_metric(labels, model["ready"])
            workers.add_metric(labels, model["workers"])
            queued.add_metric(labels, model["queued"])
        yield ready
        yield workers
        yield queued
        yield CounterMetricFamily(
            "serving_worker_starts",
            "Worker processes started, for all models.",
            value=self._torchserve.worker_starts(),
        )
        yield self._memory()
        yield self._expected_labels()

    def _memory(self) -> Metric:
        memory = GaugeMetricFamily(
            "serving_resident_memory_bytes",
            "Resident memory; pages that processes share count for each.",
            labels=("process",),
        )
        total: Counter[str] = Counter()
        for kind, resident in self._torchserve.resident_memory():
            total[kind] += resident
        for kind, resident in total.items():
            memory.add_metric((kind,), resident)
        return memory

    def _expected_labels(self) -> Metric:
        expected = GaugeMetricFamily(
            "serving_expected_label_ratio",
            f"Share of each label among the predictions for the {_SPLIT} set.",
            labels=(*_MODEL, "label"),
        )
        for archive in self._archives:
            metrics = archive.card.metrics.get(_SPLIT, {}) if archive.card else {}
            for label, share in enumerate(metrics.get("label_shares", ())):
                expected.add_metric((archive.name, archive.version, str(label)), share)
        return expected
