"""Servers as processes on free ports: this service, and a plain TorchServe."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import psutil
import requests

from handler.torchserve import find_java, torchserve_home

ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T")


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing uses now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def wait_until(look: Callable[[], T], timeout: float = 60.0) -> T:
    """Poll until `look` gives something true, and return it.

    Raises:
        TimeoutError: it did not within so many seconds.
    """
    deadline = time.monotonic() + timeout
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s; last seen: {seen!r}")
        time.sleep(0.02)
    return seen


class Server:
    """A server process with all its children, in a temporary directory of its own.

    Args:
        command: starts it in the foreground.
        inference: its URL for predictions, without a path.
        ready: a URL that answers 200 once it can serve.
        environment: on top of this process's.
    """

    def __init__(
        self, command: Sequence[str], inference: str, ready: str, **environment: str
    ) -> None:
        self._command = command
        self._environment = environment
        self._ready = ready
        self.inference = inference

    def __enter__(self) -> Self:
        # A short path, for the Unix sockets in it.
        self._temporary = tempfile.TemporaryDirectory(prefix="b-")
        directory = self._temporary.name
        own = {"TMPDIR": directory, "LOG_LOCATION": directory, "METRICS_LOCATION": directory}
        self._log = Path(directory, "output").open("w+")
        self._process = psutil.Popen(
            [part.replace("{directory}", directory) for part in self._command],
            cwd=ROOT,
            env=os.environ | own | self._environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until(self._is_ready, timeout=120)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            self._log.seek(0)
            raise RuntimeError(f"{self._command[0]} ended: {self._log.read()[-2000:]}")
        with contextlib.suppress(requests.RequestException):
            return requests.get(self._ready, timeout=10).status_code == 200
        return False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        family = list(self.family())
        self._stop()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._log.close()
        self._temporary.cleanup()

    def _stop(self) -> None:
        """Have it stop by itself, before it is killed."""

    def family(self) -> Iterator[psutil.Process]:
        """The process and all its descendants, as far as they still run."""
        with contextlib.suppress(psutil.NoSuchProcess):
            yield self._process
            yield from self._process.children(recursive=True)

    def cpu_seconds(self) -> float:
        """Processor time that the family has used so far."""
        total = 0.0
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory(self) -> dict[str, float]:
        """MiB of the family: `pss` counts what is shared once, `rss` for every process."""
        details = [process.memory_full_info() for process in self.family()]
        return {
            "pss": sum(detail.pss for detail in details) / 2**20,
            "rss": sum(detail.rss for detail in details) / 2**20,
        }


class Service(Server):
    """`python -m handler` with the configuration of the repository.

    Args:
        store: directory of the archives.
        environment: on top of this process's and of free addresses.
    """

    def __init__(self, store: Path, **environment: str) -> None:
        names = ("TS_INFERENCE", "TS_MANAGEMENT", "TS_METRICS", "TELEMETRY")
        urls = [f"http://127.0.0.1:{port}" for port in free_ports(len(names))]
        addresses = {f"{name}_ADDRESS": url for name, url in zip(names, urls, strict=True)}
        self.metrics = f"{urls[3]}/metrics"
        super().__init__(
            [sys.executable, "-m", "handler", "--model-store", str(store)],
            urls[0],
            f"{urls[3]}/readyz",
            **(addresses | environment),
        )

    def _stop(self) -> None:
        with contextlib.suppress(psutil.Error):
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)


class PlainTorchServe(Server):
    """TorchServe's own frontend and workers, without anything of this project.

    Args:
        archive: what to serve, as the only model.
        configuration: keys of its `config.properties` other than the addresses.
        java: options of the JVM.
        environment: on top of this process's.
    """

    def __init__(
        self,
        archive: Path,
        configuration: dict[str, str],
        java: Sequence[str] = (),
        **environment: str,
    ) -> None:
        home = torchserve_home()
        names = ("inference", "management", "metrics")
        urls = [f"http://127.0.0.1:{port}" for port in free_ports(len(names))]
        keys = {f"{name}_address": url for name, url in zip(names, urls, strict=True)}
        keys |= {"grpc_inference_port": "0", "grpc_management_port": "0"}
        keys |= {"disable_token_authorization": "true", "enable_envvars_config": "false"}
        lines = [f"{key}={value}" for key, value in (keys | configuration).items()]
        file = archive.with_suffix(".properties")
        file.write_text("\n".join(lines))
        command = [str(find_java()), *java, f"-Dmodel_server_home={home}"]
        command += ["-Djava.io.tmpdir={directory}", "-cp", f"{home}/ts/frontend/*"]
        command += ["org.pytorch.serve.ModelServer", "--python", sys.executable]
        command += ["--ts-config-file", str(file), "--model-store", str(archive.parent)]
        command += ["--models", archive.name, "--no-config-snapshot"]
        self._model = f"{urls[1]}/models/{archive.stem}"
        super().__init__(command, urls[0], self._model, **environment)

    def _is_ready(self) -> bool:
        if not super()._is_ready():
            return False
        (model,) = requests.get(self._model, timeout=10).json()
        minimum: int = model["minWorkers"]
        return [worker["status"] for worker in model["workers"]].count("READY") >= minimum
