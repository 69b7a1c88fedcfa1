"""What the generator measured: every request, by scenario."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Columns of the rows, one row a request. Times are in seconds, the first since the epoch; the last
# is 1 for a request that failed and 0 for one that did not.
SENT, LATENCY, LAG, FAILED = range(4)
COLUMNS = 4


class Recorder:
    """Collects the requests of one process, which sends them in batches to the one that judges.

    Every request is kept, in 32 bytes: percentiles are then exact, two runs can be compared by
    resampling, and a million requests take 32 MB.
    """

    def __init__(self) -> None:
        self._columns: dict[str, list[tuple[float, float, float, float]]] = {}
        self._counters: dict[str, Counter[str]] = {}

    def add(
        self, scenario: str, sent: float, latency: float, lag: float, counts: Mapping[str, int]
    ) -> None:
        """Record a request that has ended.

        Args:
            scenario: to which it belongs.
            sent: when it was to be sent, seconds since the epoch.
            latency: seconds from then to the answer's last byte.
            lag: seconds from then to when it was really sent.
            counts: 1 under `code <status>`, and under `failed` if it failed; the number of
                `instances` answered, and of those `correct`.
        """
        row = (sent, latency, lag, float(counts.get("failed", 0)))
        self._columns.setdefault(scenario, []).append(row)
        self._counters.setdefault(scenario, Counter()).update(counts)

    def take(self) -> dict[str, Any]:
        """Return what was collected since the last call, in types that Locust can send."""
        batch = {
            scenario: (np.asarray(rows, dtype=np.float64).tobytes(), dict(self._counters[scenario]))
            for scenario, rows in self._columns.items()
        }
        self._columns, self._counters = {}, {}
        return batch


class Scenario:
    """All requests of one scenario.

    Attributes:
        counters: as in `Recorder.add`, summed up.
    """

    def __init__(self) -> None:
        self._parts: list[Floats] = []
        self.counters: Counter[str] = Counter()

    def extend(self, rows: Floats, counters: Mapping[str, int]) -> None:
        """Add requests, float64 [n, 4], and their counters."""
        self._parts.append(rows)
        self.counters.update(counters)

    @property
    def rows(self) -> Floats:
        """Every request, float64 [n, 4]: `SENT`, `LATENCY`, `LAG`, `FAILED`."""
        if len(self._parts) != 1:
            self._parts = [np.concatenate([np.empty((0, COLUMNS)), *self._parts])]
        return self._parts[0]

    @property
    def requests(self) -> int:
        """The number of requests."""
        return len(self.rows)

    @property
    def codes(self) -> dict[str, int]:
        """Requests by status; `0` stands for no answer."""
        prefix = "code "
        return {
            key.removeprefix(prefix): count
            for key, count in sorted(self.counters.items())
            if key.startswith(prefix)
        }

    @property
    def accuracy(self) -> float | None:
        """Share of the answered instances with the correct label; None if none was answered."""
        instances = self.counters["instances"]
        return self.counters["correct"] / instances if instances else None


class Results:
    """All scenarios of a run.

    Attributes:
        started: seconds since the epoch.
        ended: likewise, or None while it runs.
    """

    def __init__(self) -> None:
        self.scenarios: dict[str, Scenario] = {}
        self.started = time.time()
        self.ended: float | None = None

    def merge(self, batch: Mapping[str, Any]) -> dict[str, Floats]:
        """Add a batch from `Recorder.take`, and return its rows by scenario."""
        added = {}
        for name, (content, counters) in batch.items():
            rows = np.frombuffer(content, dtype=np.float64).reshape(-1, COLUMNS)
            self.scenarios.setdefault(name, Scenario()).extend(rows, counters)
            added[name] = rows
        return added

    @property
    def seconds(self) -> float:
        """Duration of the run so far, or of the whole."""
        return (self.ended or time.time()) - self.started


def percentile(values: Floats, percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed (nearest rank).

    Infinite if there are no values.
    """
    if not len(values):
        return float("inf")
    return float(np.percentile(values, percent, method="inverted_cdf"))
