"""Starts servers as processes on free ports, for tests and benchmarks.

It knows their commands and HTTP, and imports none of their code.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self, TypeVar

import psutil
import requests

ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T")
LISTENERS = (
    "INFERENCE_ADDRESS",
    "TS_MANAGEMENT_ADDRESS",
    "TS_METRICS_ADDRESS",
    "TELEMETRY_ADDRESS",
)


def free_ports(count: int) -> list[int]:
    """Distinct ports of this machine that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def free_addresses() -> dict[str, str]:
    """An address with a free port for each of this service's listeners."""
    ports = free_ports(len(LISTENERS))
    return {name: f"http://127.0.0.1:{port}" for name, port in zip(LISTENERS, ports, strict=True)}


def wait_until(look: Callable[[], T], timeout: float = 60.0) -> T:
    """Poll `look` until it returns something true, and return that.

    Raises:
        TimeoutError: it did not within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s; last seen: {seen!r}")
        time.sleep(0.02)
    return seen


class Server:
    """A server process with all its children, in a temporary directory of its own.

    In a `with` block it runs and is ready.

    Args:
        command: starts it in the foreground; `{directory}` stands for the temporary directory.
        inference: its URL for predictions, without a path.
        ready: a URL that answers 200 once it can serve.
        environment: on top of this process's.

    Attributes:
        temporary: the directory; the logs are in `logs` there.
        cwd: the working directory of the process.
    """

    def __init__(
        self, command: Sequence[str], inference: str, ready: str, **environment: str
    ) -> None:
        self._command = command
        self._environment = environment
        self._ready = ready
        self.inference = inference
        # A short path, for the Unix sockets in it.
        self._directory = tempfile.TemporaryDirectory(prefix="s-")
        self.temporary = Path(self._directory.name)
        self.cwd = ROOT

    def start(self) -> None:
        """Start the process without waiting until it is ready."""
        logs = str(self.temporary / "logs")
        own = {"TMPDIR": self._directory.name, "LOG_LOCATION": logs, "METRICS_LOCATION": logs}
        with (self.temporary / "output").open("w") as log:
            self.process = subprocess.Popen(
                [part.replace("{directory}", self._directory.name) for part in self._command],
                cwd=self.cwd,
                env=os.environ | own | self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        self.start()
        try:
            wait_until(self._is_ready, timeout=120)
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return (self.temporary / "output").read_text()

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"{self._command[0]} ended: {self.output[-2000:]}")
        with contextlib.suppress(requests.RequestException):
            return requests.get(self._ready, timeout=10).status_code == 200
        return False

    def __exit__(self, *_: object) -> None:
        family = list(self.family())
        if self.process.poll() is None:
            self._stop()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()  # does nothing if it has ended
        self.process.wait()
        self._directory.cleanup()

    def _stop(self) -> None:
        """Ask it to stop before it is killed."""

    def family(self) -> list[psutil.Process]:
        """The process and all its descendants that still run."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.process.pid)
            return [process, *process.children(recursive=True)]
        return []

    def cpu_seconds(self) -> float:
        """Processor time used by the family so far."""
        total = 0.0
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory(self) -> dict[str, float]:
        """Memory of the family in MiB: `pss` counts shared pages once, `rss` in every process."""
        total = {"pss": 0.0, "rss": 0.0}
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                info = process.memory_full_info()
                total["pss"] += info.pss / 2**20
                total["rss"] += info.rss / 2**20
        return total


class Service(Server):
    """This service, with the configuration of its repository.

    Args:
        store: directory of the archives.
        models: which of them; all by default.
        environment: on top of this process's and of free addresses.
    """

    module = "server"

    def __init__(self, store: Path, *models: str, **environment: str) -> None:
        self.addresses = free_addresses() | {
            name: value for name, value in environment.items() if name in LISTENERS
        }
        inference, self.management, self.metrics, self.telemetry = self.addresses.values()
        command = [sys.executable, "-m", self.module, "--model-store", str(store.absolute())]
        command += ["--models", *models] if models else []
        environment = self.addresses | environment
        super().__init__(command, inference, f"{self.telemetry}/readyz", **environment)

    def _stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
