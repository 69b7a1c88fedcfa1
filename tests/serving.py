"""Real servers on free ports, started as a user would and awaited by polling."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import javaproperties
import psutil
import requests
from prometheus_client.parser import text_string_to_metric_families

from loadtest.servers import ROOT, Service, free_addresses, wait_until

__all__ = ["QUICK_JVM", "ROOT", "ServerProcess", "free_addresses", "serving"]

# Compiles code once only: a JVM starts in 2.4 s of a core instead of 4.0, and is slower when warm.
QUICK_JVM = "-XX:TieredStopAtLevel=1"
_VMARGS = javaproperties.loads((ROOT / "config.properties").read_text())["vmargs"]


class ServerProcess(Service):
    """`python -m server`; entering the `with` block starts it without waiting until it is ready.

    Args:
        store: directory of the archives.
        models: which of them; all by default.
        environment: on top of this process's, of free addresses, and of what starts fast: one
            worker a model, a JVM as `QUICK_JVM` has it, and workers without coverage, with which
            they import torch in 4.0 s instead of 2.3, and of which nothing is kept when they are
            killed.
    """

    def __init__(self, store: Path, *models: str, **environment: str) -> None:
        quick = {
            "TS_DEFAULT_WORKERS_PER_MODEL": "1",
            "TS_VMARGS": f"{_VMARGS} {QUICK_JVM}",
            "TS_BLACKLIST_ENV_VARS": "COVERAGE_.*",
        }
        super().__init__(store, *models, **(quick | environment))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        if any(error):
            print(self.output)
        super().__exit__(*error)

    @property
    def last_line(self) -> str:
        return self.output.rstrip().rpartition("\n")[2]

    def url(self, model: str) -> str:
        return f"{self.inference}/predictions/{model}"

    def probe(self, path: str) -> tuple[int, str]:
        """Status and body of a health path; 0 while nothing listens."""
        try:
            response = requests.get(f"{self.telemetry}{path}", timeout=10)
        except requests.ConnectionError:
            return 0, ""
        return response.status_code, response.text

    def wait_until_ready(self, timeout: float = 90.0) -> Self:
        def is_ready() -> bool:
            assert self.process.poll() is None, self.output
            return self.probe("/readyz")[0] == 200

        wait_until(is_ready, timeout)
        return self

    def wait(self, timeout: float = 60.0) -> int:
        """Wait until it has ended by itself, and return its exit code."""
        return self.process.wait(timeout)

    def family(self) -> list[psutil.Process]:
        """The processes of this server that still run, besides itself, whatever their parent.

        Each has the server's temporary directory in its command line.
        """
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if str(self.temporary) in " ".join(process.info["cmdline"] or [])
        ]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of a metric that have these labels."""
        text = requests.get(f"{self.telemetry}/metrics", timeout=10).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def accepted(self) -> float:
        """Requests that the door has taken in so far."""
        return self.metric("haproxy_frontend_http_requests_total", proxy="door")


@contextlib.contextmanager
def serving(store: Path, *models: str, **environment: str) -> Iterator[ServerProcess]:
    """A server that is ready."""
    with ServerProcess(store, *models, **environment) as server:
        yield server.wait_until_ready()
