"""The generator's own metrics, for a dashboard that shows them over the server's."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from loadtest.recorder import LAG, LATENCY, Floats

# The buckets of the server's histograms, so that the two can be compared.
_SECONDS = (250e-6, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Exporter:
    """Serves `/metrics` on a port of its own.

    Args:
        port: on every interface.

    Raises:
        OSError: the port is in use.
    """

    def __init__(self, port: int) -> None:
        registry = CollectorRegistry()
        self._requests = Counter(
            "loadtest_requests_total",
            "Requests that have ended, by status; 0 stands for no answer.",
            ("scenario", "code"),
            registry=registry,
        )
        self._latency = Histogram(
            "loadtest_latency_seconds",
            "From when a request was to be sent to its answer's last byte.",
            ("scenario",),
            registry=registry,
            buckets=_SECONDS,
        )
        self._lag = Histogram(
            "loadtest_send_lag_seconds",
            "From when a request was to be sent to when it was sent.",
            ("scenario",),
            registry=registry,
            buckets=_SECONDS,
        )
        self._users = Gauge("loadtest_users", "Users; in an open loop, sources.", registry=registry)
        self._rate = Gauge(
            "loadtest_target_rate", "Requests a second of an open loop.", registry=registry
        )
        start_http_server(port, registry=registry)

    def observe(
        self, rows: Mapping[str, Floats], counters: Mapping[str, Mapping[str, int]]
    ) -> None:
        """Record requests that have ended: rows of the recorder and their counters, by scenario."""
        for scenario, values in rows.items():
            latency, lag = self._latency.labels(scenario), self._lag.labels(scenario)
            for row in values.tolist():
                latency.observe(row[LATENCY])
                lag.observe(row[LAG])
            for key, count in counters[scenario].items():
                if key.startswith("code "):
                    self._requests.labels(scenario, key.removeprefix("code ")).inc(count)

    def load(self, users: int, rate: float) -> None:
        """Record the users and the rate that are aimed at now."""
        self._users.set(users)
        self._rate.set(rate)
