"""The generator's view as metrics, so that a dashboard can lay it over the server's."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from handler.metrics import SECONDS, observe_all
from loadtest.recorder import Floats


class Exporter:
    """Serves `/metrics` on a port of its own.

    Args:
        port: where, on every interface.

    Raises:
        OSError: the port is in use.
    """

    def __init__(self, port: int) -> None:
        registry = CollectorRegistry()
        self._requests = Counter(
            "loadtest_requests_total",
            "Requests that have ended, by status; 0 had no answer.",
            ("scenario", "code"),
            registry=registry,
        )
        self._latency = Histogram(
            "loadtest_latency_seconds",
            "From when a request was to be sent to its answer's last byte.",
            ("scenario",),
            registry=registry,
            buckets=SECONDS,
        )
        self._lag = Histogram(
            "loadtest_send_lag_seconds",
            "From when a request was to be sent to when it was.",
            ("scenario",),
            registry=registry,
            buckets=SECONDS,
        )
        self._users = Gauge("loadtest_users", "Users, or sources.", registry=registry)
        self._rate = Gauge(
            "loadtest_target_rate", "Requests a second of an open loop.", registry=registry
        )
        start_http_server(port, registry=registry)

    def observe(
        self, rows: Mapping[str, Floats], counters: Mapping[str, Mapping[str, int]]
    ) -> None:
        """Requests have ended: rows of time sent, latency and lag, and their counters."""
        for scenario, values in rows.items():
            observe_all(self._latency.labels(scenario), values[:, 1].tolist())
            observe_all(self._lag.labels(scenario), values[:, 2].tolist())
            for key, count in counters[scenario].items():
                if key.startswith("code "):
                    self._requests.labels(scenario, key.removeprefix("code ")).inc(count)

    def load(self, users: int, rate: float) -> None:
        """What is aimed at now."""
        self._users.set(users)
        self._rate.set(rate)
