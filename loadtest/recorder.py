"""What the generator saw: every latency as it was measured, by scenario."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Recorder:
    """Collects requests in one process; batches of it travel to the one that judges.

    All latencies are kept, 8 bytes each with 16 for their times: percentiles are then exact, two
    runs can be compared by resampling, and a million requests take 24 MB.
    """

    def __init__(self) -> None:
        self._columns: dict[str, list[tuple[float, float, float]]] = {}
        self._counters: dict[str, Counter[str]] = {}

    def add(
        self, scenario: str, sent: float, latency: float, lag: float, counts: Mapping[str, int]
    ) -> None:
        """One request has ended.

        Args:
            scenario: whose.
            sent: when it was to be sent, seconds since the epoch.
            latency: seconds from then to the answer's last byte.
            lag: seconds from then to when it was really sent.
            counts: 1 under `code <status>`, and under `failed` if it is a failure; how many
                `instances` were answered, and how many of those `correct`.
        """
        self._columns.setdefault(scenario, []).append((sent, latency, lag))
        self._counters.setdefault(scenario, Counter()).update(counts)

    def take(self) -> dict[str, Any]:
        """All that was collected since the last call, in types that Locust can send."""
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
        """Add requests, float64 [n, 3] of time sent, latency and lag."""
        self._parts.append(rows)
        self.counters.update(counters)

    @property
    def rows(self) -> Floats:
        """float64 [n, 3]: time sent, latency, lag, in seconds."""
        if len(self._parts) != 1:
            self._parts = [np.concatenate([np.empty((0, 3)), *self._parts])]
        return self._parts[0]

    @property
    def requests(self) -> int:
        """How many there were."""
        return len(self.rows)

    @property
    def codes(self) -> dict[str, int]:
        """Requests by status; `0` had no answer."""
        prefix = "code "
        return {
            key.removeprefix(prefix): count
            for key, count in sorted(self.counters.items())
            if key.startswith(prefix)
        }

    @property
    def accuracy(self) -> float | None:
        """Share of the instances answered whose label was right."""
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
        """Add what `Recorder.take` gave, and return its rows."""
        added = {}
        for name, (content, counters) in batch.items():
            rows = np.frombuffer(content, dtype=np.float64).reshape(-1, 3)
            self.scenarios.setdefault(name, Scenario()).extend(rows, counters)
            added[name] = rows
        return added

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.ended or time.time()) - self.started


def percentile(values: Floats, percent: float) -> float:
    """The smallest value that at least so many percent of the values do not exceed (nearest rank).

    Infinite where there are none.
    """
    if not len(values):
        return float("inf")
    return float(np.percentile(values, percent, method="inverted_cdf"))
