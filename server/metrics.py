"""Server-level metrics: readiness, restarts, queues, memory, and answers as clients saw them."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from server import cgroup
from server.patches import PATCHES
from server.watcher import Snapshot

_MODEL = ("model", "version")
# The split whose predictions give the expected share of each label: evaluated once.
_SPLIT = "test"
# What clients saw of each model: the name of the door's metric, ours, and its help.
_OF_CLIENTS = (
    (
        "haproxy_backend_http_responses_total",
        "serving_responses_total",
        "Answers to clients by class of status, whoever answered, the door or TorchServe.",
    ),
    (
        "haproxy_backend_connection_errors_total",
        "serving_refused_total",
        "Requests refused by the door, as their turn did not come or no TorchServe was up.",
    ),
)
_STARTED = psutil.Process().create_time()
RELOAD_RESULTS = ("done", "refused")


@dataclass
class Tally:
    """Counts of the server itself.

    Attributes:
        torchserve_starts: TorchServe processes started.
        door_starts: doors started.
        worker_starts: worker processes started, by the TorchServe that did. An entry only grows: a
            TorchServe that has handed over may still start workers while it answers what it has.
        reloads: by result, one of `RELOAD_RESULTS`.
    """

    torchserve_starts: int = 0
    door_starts: int = 0
    worker_starts: dict[str, int] = field(default_factory=dict)
    reloads: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RELOAD_RESULTS, 0))


class ServerMetrics(Collector):
    """The metrics of the server process.

    Args:
        snapshot: returns the last one.
        tally: the server's counts.
        missing_patches: returns the names of the patches that do not fit this TorchServe.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        tally: Tally,
        missing_patches: Callable[[], frozenset[str]],
    ) -> None:
        self._snapshot = snapshot
        self._tally = tally
        self._missing_patches = missing_patches
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self, door: bytes) -> bytes:
        """All metrics in the text format, with those derived from the door's."""
        return generate_latest(self._registry) + _of_clients(door.decode())

    def describe(self) -> list[Metric]:
        """Return nothing, or the registry would collect to know the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read the snapshot and the tally."""
        snapshot = self._snapshot()
        gauges = {
            "ready": GaugeMetricFamily(
                "serving_model_ready", "Whether the model is ready, as /readyz says.", labels=_MODEL
            ),
            "workers": GaugeMetricFamily(
                "serving_workers", "Workers that have loaded the model.", labels=_MODEL
            ),
            "queued": GaugeMetricFamily(
                "serving_queued_requests",
                "Requests in TorchServe that wait for a worker.",
                labels=_MODEL,
            ),
            "no_gpu": GaugeMetricFamily(
                "serving_gpu_missing",
                "Whether the model computes on the CPU where a GPU is required.",
                labels=_MODEL,
            ),
        }
        for model in snapshot.models:
            labels = (model.archive.name, model.archive.version)
            gauges["ready"].add_metric(labels, snapshot.reason(model) is None)
            gauges["workers"].add_metric(labels, model.workers)
            gauges["queued"].add_metric(labels, model.queued)
            gauges["no_gpu"].add_metric(labels, model.lacks_gpu)
        yield from gauges.values()
        yield GaugeMetricFamily(
            "serving_snapshot_age_seconds",
            "Time since TorchServe last answered what serving_model_ready, serving_workers and "
            "serving_queued_requests show.",
            value=snapshot.age,
        )
        tally = self._tally
        for name, text, value in (
            (
                "worker",
                "Worker processes started, for all models.",
                sum(tally.worker_starts.values()),
            ),
            ("torchserve", "TorchServe processes started.", tally.torchserve_starts),
            ("door", "Processes of the front door started.", tally.door_starts),
        ):
            yield CounterMetricFamily(f"serving_{name}_starts", text, value=value)
        reloads = CounterMetricFamily(
            "serving_reloads", "Changes of the models that were asked for.", labels=("result",)
        )
        for result, count in tally.reloads.items():
            reloads.add_metric((result,), count)
        yield reloads
        missing = GaugeMetricFamily(
            "serving_patch_missing",
            "Whether a patch of server/patches.py does not fit this TorchServe.",
            labels=("patch",),
        )
        for patch in PATCHES:
            missing.add_metric((patch,), patch in self._missing_patches())
        yield missing
        yield self._memory(snapshot)
        yield GaugeMetricFamily(
            "serving_start_time_seconds", "When the server started, in Unix time.", value=_STARTED
        )
        limited = cgroup.memory()
        yield GaugeMetricFamily(
            "serving_memory_working_set_bytes",
            "Memory in use that cannot be dropped, of the container or else of the machine.",
            value=limited.working_set,
        )
        yield GaugeMetricFamily(
            "serving_memory_limit_bytes",
            "How much of it there may be until the kernel kills.",
            value=limited.limit,
        )
        yield self._expected_labels(snapshot)

    @staticmethod
    def _memory(snapshot: Snapshot) -> Metric:
        memory = GaugeMetricFamily(
            "serving_resident_memory_bytes",
            "Resident memory; pages that processes share count for each.",
            labels=("process",),
        )
        own = {"server": psutil.Process().memory_info().rss}
        for kind, resident in (own | dict(snapshot.memory)).items():
            memory.add_metric((kind,), resident)
        return memory

    @staticmethod
    def _expected_labels(snapshot: Snapshot) -> Metric:
        expected = GaugeMetricFamily(
            "serving_expected_label_ratio",
            f"Share of each label among the predictions for the {_SPLIT} set.",
            labels=(*_MODEL, "label"),
        )
        for model in snapshot.models:
            archive = model.archive
            metrics = archive.card.metrics.get(_SPLIT, {}) if archive.card else {}
            for label, share in enumerate(metrics.get("label_shares", ())):
                expected.add_metric((archive.name, archive.version, str(label)), share)
        return expected


def _of_clients(door: str) -> bytes:
    waiting: Counter[str] = Counter()
    pattern = r'^haproxy_server_current_queue\{proxy="model:([^"]+)",[^}]*\} (\S+)$'
    for model, value in re.findall(pattern, door, re.MULTILINE):
        waiting[model] += int(value)
    lines = [
        "# HELP serving_waiting_requests Requests that wait in the door for their turn.",
        "# TYPE serving_waiting_requests gauge",
        *(f'serving_waiting_requests{{model="{model}"}} {n}' for model, n in waiting.items()),
    ]
    for name, ours, text in _OF_CLIENTS:
        lines += [f"# HELP {ours} {text}", f"# TYPE {ours} counter"]
        pattern = rf'^{name}\{{proxy="model:([^"]+)"(,code="[^"]+")?\}} (\S+)$'
        lines += [
            f'{ours}{{model="{model}"{code}}} {value}'
            for model, code, value in re.findall(pattern, door, re.MULTILINE)
        ]
    return ("\n".join(lines) + "\n").encode()
