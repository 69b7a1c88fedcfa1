"""Workers are killed and models changed again and again: counters go up, files do not."""

import random
import time
from collections import Counter
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from loadtest.server_side import Sample, _mismatches, difference, scrape
from loadtest.servers import wait_until
from loadtest.traffic import LOST, Background, Load, keep_alive
from tests.reliability.processes import named, workers
from tests.reliability.record import Section, scaled
from tests.serving import ROOT, ServerProcess, serving

SEVEN = (ROOT / "samples" / "seven.png").read_bytes()
XOR = b'{"instances": [[0, 1]]}'
BODIES = {"mnist": SEVEN, "xor": XOR}
RELOADS = scaled(2, 10)
KILLS = scaled(3, 5)
SECTION = Section(
    41,
    "Counters",
    f"""Under the load of 12 clients a worker is killed {KILLS} times, at random moments and whether
or not the one before is back; then the models are changed; all that {RELOADS} times. `/metrics` is
scraped five times a second throughout, and the case fails if a sample of a counter or a histogram
is ever lower than in the scrape before, or missing. At the end of each round, what clients counted
is compared with what the server counted, as a load test does it. *Files* are those of workers'
metrics: three of each worker, and two of all that are gone.""",
)


class Scraper(Background):
    """Scrapes in a `with` block, and notes each counter that went down or vanished."""

    def __init__(self, server: ServerProcess) -> None:
        self._url = f"{server.telemetry}/metrics"
        super().__init__()
        self._last: dict[Sample, float] = {}
        self.faults: list[str] = []
        self.scrapes = 0

    def _run(self) -> None:
        while not self._over.wait(0.2):
            now = counters(requests.get(self._url, timeout=10).text)
            for sample, value in self._last.items():
                if now.get(sample, -1.0) < value:
                    self.faults.append(f"{sample}: {value} to {now.get(sample)}")
            self._last = now
            self.scrapes += 1

    @property
    def samples(self) -> int:
        return len(self._last)


def counters(text: str) -> dict[Sample, float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        if family.type in ("counter", "histogram")
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def kill_workers(server: ServerProcess, rng: random.Random) -> None:
    for _ in range(KILLS):
        model = rng.choice(["mnist", "mnist", "xor"])
        rng.choice(wait_until(lambda model=model: workers(server, model), 300)).kill()  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.5))


def files(server: ServerProcess) -> int:
    return len([*server.temporary.glob("serve-*/metrics/*.db")])


@pytest.mark.timeout(1200)
def test_no_counter_goes_down(store: Path) -> None:
    rng = random.Random(0)
    total: Counter[int] = Counter()
    most = 0
    with serving(store, TS_DEFAULT_WORKERS_PER_MODEL="2") as server, Scraper(server) as scraper:
        at_first = files(server)
        for _ in range(RELOADS):
            before = scrape(f"{server.telemetry}/metrics")
            with (
                Load(
                    *[keep_alive(server.url("mnist"), [SEVEN], idle=0.01) for _ in range(8)]
                ) as mnist,
                Load(*[keep_alive(server.url("xor"), [XOR], idle=0.01) for _ in range(4)]) as xor,
            ):
                wait_until(lambda: min(mnist.statuses[200], xor.statuses[200]) > 100)
                kill_workers(server, rng)
                answer = requests.post(f"{server.telemetry}/reload", timeout=180)
                assert answer.status_code == 200, answer.text
                most = max(most, files(server))
            # What the door before answered at last is counted when it ends.
            wait_until(lambda: len(named("haproxy")(server)) == 1)
            served = difference(before, scrape(f"{server.telemetry}/metrics"))
            for model, load in (("mnist", mnist), ("xor", xor)):
                print(load.statuses, [o for o in load.outcomes if o.status not in (200, 503)][:5])
                codes = Counter({str(code): n for code, n in load.statuses.items()})
                assert not [*_mismatches(model, codes, served[model].answers)]
                # 504 where no worker came back within 30 s, as on a machine that is very busy.
                assert set(load.statuses) <= {200, 503, 504}
                total += load.statuses
        server.wait_until_ready()
        wait_until(lambda: files(server) <= at_first + 2)
        at_last = files(server)
    SECTION.record(
        {
            "what": f"{RELOADS * KILLS} kills of a worker, {RELOADS} reloads",
            "sent": total.total(),
            "lost": total[LOST],
            "refused": total[503],
            "504": total[504],
            "scrapes": scraper.scrapes,
            "samples": scraper.samples,
            "went down": len(scraper.faults),
            "files at first": at_first,
            "most": most,
            "files at last": at_last,
        }
    )
    assert scraper.faults == []


def test_files_of_dead_workers_are_folded_without_a_scrape(store: Path) -> None:
    with serving(store, "xor") as server:
        for _ in range(2):
            (worker,) = workers(server, "xor")
            worker.kill()

            def names(pid: int = worker.pid) -> list[str]:
                files = server.temporary.glob("serve-*/metrics/*.db")
                return [file.name for file in files if str(pid) in file.name]

            wait_until(lambda names=names: not names())  # type: ignore[misc]
            wait_until(lambda: len(workers(server, "xor")) == 1)
        assert files(server) == 3 + 2
