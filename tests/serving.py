"""Real servers on free ports, started as a user would and waited for by polling."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil
import requests

from loadtest.servers import free_ports, wait_until

ROOT = Path(__file__).resolve().parent.parent
LISTENERS = (
    "TS_INFERENCE_ADDRESS",
    "TS_MANAGEMENT_ADDRESS",
    "TS_METRICS_ADDRESS",
    "TELEMETRY_ADDRESS",
)


def free_addresses() -> dict[str, str]:
    """An address with a port that nothing uses, for each listener's variable."""
    ports = free_ports(len(LISTENERS))
    return {name: f"http://127.0.0.1:{port}" for name, port in zip(LISTENERS, ports, strict=True)}


class ServerProcess:
    """`python -m handler` in a process of its own, ended at the end of the `with` block.

    Args:
        store: directory of the archives.
        models: which of them; all by default.
        environment: on top of this process's, of free addresses, and of one worker a model, which
            starts sooner than two.
    """

    def __init__(self, store: Path, *models: str, **environment: str) -> None:
        # Of its own, so that a test sees what is left there; short, for the sockets in it.
        self._temporary = tempfile.TemporaryDirectory(prefix="t-")
        self.temporary = Path(self._temporary.name)
        self.addresses = free_addresses() | {
            name: value for name, value in environment.items() if name in LISTENERS
        }
        self.inference, self.management, self.metrics, self.telemetry = self.addresses.values()
        command = [sys.executable, "-m", "handler", "--model-store", str(store)]
        if models:
            command += ["--models", *models]
        self._log: IO[str] = (self.temporary / "output").open("w+")
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ
            | {"TMPDIR": self._temporary.name, "LOG_LOCATION": f"{self._temporary.name}/logs"}
            | {"TS_DEFAULT_WORKERS_PER_MODEL": "1"}
            | self.addresses
            | environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if kind:
            print(self.output)
        self._log.close()
        self._temporary.cleanup()

    @property
    def output(self) -> str:
        """All that it has printed."""
        return (self.temporary / "output").read_text()

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
        """The exit code, once it has ended by itself."""
        return self.process.wait(timeout)

    def family(self) -> list[psutil.Process]:
        """The JVM and the workers of this server that run now, whoever their parent is.

        Each has the server's temporary directory in its command line.
        """
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if self._temporary.name in " ".join(process.info["cmdline"] or [])
        ]

    def accepted(self) -> float:
        """Prediction requests that the frontend has taken in so far."""
        lines = requests.get(f"{self.metrics}/metrics", timeout=10).text.splitlines()
        counts = (line for line in lines if line.startswith("ts_inference_requests_total{"))
        return sum(float(line.rpartition(" ")[2]) for line in counts)

    def pending(self, model: str) -> int:
        """Requests in the model's queue, which no worker has taken yet."""
        (status,) = requests.get(f"{self.management}/models/{model}", timeout=10).json()
        count: int = status["jobQueueStatus"]["pendingRequests"]
        return count


@contextlib.contextmanager
def serving(store: Path, *models: str, **environment: str) -> Iterator[ServerProcess]:
    """A server that is ready."""
    with ServerProcess(store, *models, **environment) as server:
        yield server.wait_until_ready()
