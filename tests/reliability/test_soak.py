"""Hours in small: at 70 % of capacity, with a change of models now and then, nothing grows."""

import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
import requests
from scipy import stats

from loadtest.servers import wait_until
from loadtest.traffic import (
    LOST,
    Load,
    describe,
    keep_alive,
    of_status,
    open_loop,
    percentile,
)
from tests.reliability.processes import named
from tests.reliability.record import LONG, Cell, Section, scaled
from tests.serving import ROOT, ServerProcess, serving

SEVEN = (ROOT / "samples" / "seven.png").read_bytes()
XOR = b'{"instances": [[0, 1]]}'
SECONDS = float(os.environ.get("SOAK_SECONDS", scaled(16, 240)))
# Parts of the run; between them the models are changed.
PARTS = scaled(2, 4)
SHARE = scaled(0.3, 0.7)
CONNECTIONS = 32
CONFIDENCE = 0.99
# Of each part, what comes before is start-up: two generations at once, and code that is compiled.
SETTLED = 0.4
SECTION = Section(
    40,
    f"A soak of {SECONDS / 60:.0f} minutes",
    f"""Requests come at {SHARE:.0%} of the rate that 16 clients got at first, as a Poisson process
whatever the answers do, over {2 * CONNECTIONS} connections, four mnist to one xor; a reload begins
each of the {PARTS} parts but the first. *Slope* is the growth a minute within a part, after its
first {SETTLED:.0%}: the mean of the parts' least-squares slopes with its {CONFIDENCE:.0%} interval,
from the spread between parts (t with {PARTS - 1} degrees of freedom). *Step* is the growth from
part to part of the mean, likewise.
The case fails if a whole interval lies above what the code tolerates. `SOAK_SECONDS=1200` makes it
20 minutes.""",
)
# Files that hold what workers counted that are gone.
FOLDED = 2
# What may be measured above zero: for memory, pages that are touched for the first time; a change
# of models writes to the log.
TOLERANCE = {"MiB": 2.0, "KiB": 8.0, "": 0.0}


class Growth(NamedTuple):
    """A mean with a confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.2g} ({self.low:+.2g} to {self.high:+.2g})"


def growth(each: Sequence[float]) -> Growth:
    """Of independent estimates of one slope."""
    mean = float(np.mean(each))
    spread = float(np.std(each, ddof=1)) / math.sqrt(len(each))
    margin = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(each) - 1)) * spread
    return Growth(mean, mean - margin, mean + margin)


def kind(process: psutil.Process, server: ServerProcess) -> str:
    if process.pid == server.process.pid:
        return "server"
    return {"java": "JVM", "haproxy": "door"}.get(process.name(), "workers")


def usage(server: ServerProcess) -> dict[str, float]:
    """What the server holds now, by what it is and its unit in brackets."""
    held: Counter[str] = Counter()
    for process in [psutil.Process(server.process.pid), *server.family()]:
        try:
            name = kind(process, server)
            held[f"RSS of {name} [MiB]"] += process.memory_info().rss / 2**20  # type: ignore[assignment]
            held[f"descriptors of {name}"] += process.num_fds()
            held[f"threads of {name}"] += process.num_threads()
        except psutil.NoSuchProcess:
            continue
    (run,) = server.temporary.glob("serve-*")
    held["metric files"] = len([*run.glob("metrics/*")])
    # Unlike glob, it passes over directories that go meanwhile, as those of a TorchServe do.
    held["files of the run"] = sum(len(files) for _, _, files in os.walk(run))
    logs = [server.temporary / "output", *server.temporary.glob("logs/*")]
    held["log [KiB]"] = sum(file.stat().st_size for file in logs) / 2**10  # type: ignore[assignment]
    return dict(held)


def capacity(server: ServerProcess) -> float:
    """Requests a second that 16 clients get, once what is hot has been compiled."""
    for seconds in (3.0, 3.0):
        with Load(*[keep_alive(server.url("mnist"), [SEVEN]) for _ in range(16)]) as load:
            started = time.monotonic()
            time.sleep(seconds)
            took = time.monotonic() - started
    return load.statuses[200] / took


def watch(server: ServerProcess) -> list[list[dict[str, float]]]:
    """Change the models, let them settle, and sample what is held; for each part."""
    parts: list[list[dict[str, float]]] = []
    for number in range(PARTS):
        begin = time.monotonic()
        if number:
            answer = requests.post(f"{server.telemetry}/reload", timeout=180)
            assert answer.status_code == 200, answer.text
            wait_until(lambda: len(named("java")(server)) == 1)
            # Nobody scrapes this server, and yet the files of workers that are gone are folded.
            most = parts[0][0]["metric files"] + FOLDED
            wait_until(lambda most=most: usage(server)["metric files"] <= most)  # type: ignore[misc]
        settled = max(begin + SETTLED * SECONDS / PARTS, time.monotonic())
        end = settled + (1 - SETTLED) * SECONDS / PARTS
        samples: list[dict[str, float]] = []
        while (now := time.monotonic()) < end:
            if now >= settled:
                samples.append({"minutes": now / 60} | usage(server))
            time.sleep(SECONDS / PARTS / 40)
        parts.append(samples)
    return parts


@pytest.mark.timeout(SECONDS + 300)
def test_nothing_grows(store: Path) -> None:
    with serving(store, TS_DEFAULT_WORKERS_PER_MODEL="2") as server:
        rate = SHARE * capacity(server)
        users = [
            open_loop(server.url(model), body, share * rate, 10 * SECONDS, connections=CONNECTIONS)
            for model, body, share in (("mnist", SEVEN, 0.8), ("xor", XOR, 0.2))
        ]
        with Load(*users) as load:
            parts = watch(server)
        print(describe(load), [o for o in load.outcomes if o.status == LOST][:5])
        total = sum(
            server.metric("serving_responses_total", model=model) for model in ("mnist", "xor")
        )
    assert load.statuses[LOST] == 0
    assert set(load.statuses) <= {200, 503}
    assert total >= len(load.outcomes)
    good = [*of_status(load.outcomes, 200)]
    row: dict[str, Cell] = {
        "what": "requests",
        "sent": len(load.outcomes),
        "requests/s": round(rate),
        "lost": load.statuses[LOST],
        "refused": load.statuses[503],
        "p99 ms": 1e3 * percentile(good, 0.99),
    }
    SECTION.record(row, f"{PARTS - 1} reloads")
    grown = [name for name in parts[0][0] if name != "minutes" and not check(name, parts)]
    assert not grown


def check(name: str, parts: Sequence[Sequence[dict[str, float]]]) -> bool:
    """Record the growth of one thing; whether it may be zero."""
    slopes, means = [], []
    for samples in parts:
        minutes = [sample["minutes"] for sample in samples]
        values = [sample.get(name, 0.0) for sample in samples]
        slopes.append(float(np.polyfit(minutes, values, 1)[0]))
        means.append(float(np.mean(values)))
    tolerance = TOLERANCE[name.partition("[")[2].rstrip("]")]
    row: dict[str, Cell] = {"what": name, "mean": float(np.mean(means))}
    # A short run has nothing to make intervals of: its parts end within seconds of a start.
    if not LONG:
        SECTION.record(row | {"step a part": means[-1] - means[0]})
        # The door keeps connections to TorchServe, as many as requests were ever there at once.
        allowed = 100 if tolerance else 4 * CONNECTIONS * name.startswith("descriptors") + FOLDED
        return means[-1] - means[0] <= allowed
    slope, step = growth(slopes), growth([float(each) for each in np.diff(means)])
    SECTION.record(row | {"slope a minute": str(slope), "step a part": str(step)})
    return slope.low <= tolerance and step.low <= 10 * tolerance
