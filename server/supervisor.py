"""The server process: brings TorchServe up, says how it is, and takes it down, losing nothing."""

import contextlib
import errno
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import requests

from server.control import TelemetryServer
from server.exposition import CONTENT_TYPE, Exposition
from server.metrics import Vitals
from server.settings import Settings
from server.store import Archive
from server.torchserve import ModelStatus, TorchServe

_POLL_SECONDS = 0.1
# Between the frontend's queue and a worker, and between a worker and the socket of the client, a
# request is for some milliseconds seen by nobody: idle means idle for this long without a break.
_IDLE_SECONDS = 0.3
# A frontend that has not answered for so long will not come back by itself.
_UNRESPONSIVE_SECONDS = 60.0


class ServerError(Exception):
    """The server could not start or could not go on; the message is all a user needs to read."""


class Server:
    """One run of the service.

    Args:
        settings: the configuration.
        archives: what to serve, at least one.
    """

    def __init__(self, settings: Settings, archives: Sequence[Archive]) -> None:
        self._settings = settings
        self._archives = archives
        self._run_directory = Path(tempfile.mkdtemp(prefix="serve-"))
        self._torchserve = TorchServe(settings, archives, self._run_directory)
        self._exposition = Exposition(self._torchserve.metrics_directory)
        self._vitals = Vitals(archives, self._torchserve, self.readiness)
        self._signals: list[signal.Signals] = []
        self._wake = threading.Event()
        self._started = False
        self._draining = False
        self._last_answer = time.monotonic()
        self._warm: dict[Path, frozenset[int]] = {}
        self._readiness_lock = threading.Lock()

    def run(self) -> int:
        """Serve until a signal comes.

        Returns:
            The exit code: 0 after a drain, 128 plus the signal's number where a second one cut the
            drain short, 1 where requests were still in flight at its end.

        Raises:
            ServerError: the server could not start, or TorchServe ended by itself.
            TorchServeError: there is no JVM.
        """
        try:
            with self._catch_signals():
                check_ports(self._settings)
                probes = {"/livez": self.liveness, "/readyz": self.readiness}
                scrapes = {"/metrics": self.metrics}
                telemetry = TelemetryServer(self._settings.telemetry, probes, scrapes)
                telemetry.start()
                try:
                    self._torchserve.start()
                    self._wait_until_ready()
                    if self._started:
                        self._announce()
                        self._wait_for_signal()
                    return self._drain()
                finally:
                    self._torchserve.kill()
                    telemetry.stop()
        finally:
            shutil.rmtree(self._run_directory, ignore_errors=True)

    @contextlib.contextmanager
    def _catch_signals(self) -> Iterator[None]:
        def note(number: int, _: FrameType | None) -> None:
            self._signals.append(signal.Signals(number))
            self._wake.set()

        previous = {
            number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _wait_until_ready(self) -> None:
        """Wait for every model, or for a signal."""
        deadline = time.monotonic() + self._settings.startup_timeout
        while not self._signals:
            self._check_torchserve()
            _, report = self.readiness()
            failures = {a.name: self._torchserve.load_failure(a) for a in self._archives}
            if self._started:  # as seen here, or before by a probe
                return
            for name, failure in failures.items():
                if failure:
                    raise ServerError(f"model {name} failed to load: {failure}")
            if time.monotonic() > deadline:
                reasons = "; ".join(
                    f"{name}: {model['reason']}"
                    for name, model in report["models"].items()
                    if not model["ready"]
                )
                raise ServerError(
                    f"not ready within {self._settings.startup_timeout:g} s "
                    f"(TS_DEFAULT_STARTUP_TIMEOUT): {reasons}"
                )
            self._wake.wait(_POLL_SECONDS)

    def _check_torchserve(self) -> None:
        if self._torchserve.exit_code is not None:
            last_words = self._torchserve.last_words()
            raise ServerError(
                f"TorchServe ended by itself with exit code {self._torchserve.exit_code}"
                + (f": {last_words[0]}" if last_words else "")
            )

    def _announce(self) -> None:
        inference, telemetry = self._settings.inference.url, self._settings.telemetry.url
        lines = [f"serving {', '.join(f'{a.name} {a.version}' for a in self._archives)}"]
        names = {archive.name for archive in self._archives}
        if "mnist" in names:
            lines.append(f"  curl -T samples/seven.png {inference}/predictions/mnist")
        if "xor" in names:
            lines.append(
                """  curl -d '{"instances": [[0, 1], [1, 1]]}' \\\n"""
                + " " * 7
                + f"-H 'Content-Type: application/json' {inference}/predictions/xor"
            )
        lines.append(f"readiness at {telemetry}/readyz; Ctrl-C stops")
        print("\n".join(lines), flush=True)

    def _wait_for_signal(self) -> None:
        while not self._signals:
            self._check_torchserve()
            self._wake.wait(1.0)

    def _drain(self) -> int:
        """Answer what is in flight, then return the exit code."""
        self._draining = True
        # The grace is for balancers that lag behind: none routes to a server in a terminal, nor to
        # one that was never ready.
        by_hand = self._signals[0] == signal.SIGINT
        grace = self._settings.drain_grace if self._started and not by_hand else 0.0
        print(f"stopping: {self._signals[0].name}, draining", flush=True)
        grace_end = time.monotonic() + grace
        deadline = grace_end + self._settings.drain_timeout
        idle_since: float | None = None
        while len(self._signals) < 2:
            self._check_torchserve()
            now = time.monotonic()
            if not self._torchserve.is_idle():
                idle_since = None
            elif idle_since is None:
                idle_since = now
            elif now >= grace_end and now - idle_since >= self._idle_seconds():
                print("stopped: every request was answered", flush=True)
                return 0
            if now > deadline:
                print(
                    f"error: requests were still in flight {self._settings.drain_timeout:g} s "
                    f"after the grace (DRAIN_TIMEOUT_SECONDS)",
                    file=sys.stderr,
                    flush=True,
                )
                return 1
            time.sleep(_POLL_SECONDS / 2)
        print(f"stopped at once: second signal, {self._signals[1].name}", flush=True)
        return 128 + self._signals[1]

    def _idle_seconds(self) -> float:
        delays = [_IDLE_SECONDS]
        for archive in self._archives if self._settings.wait_for_batch else ():
            with contextlib.suppress(requests.RequestException):
                status = self._torchserve.status(archive)
                delays.append(2 * status.batch_delay if status else 0.0)
        return max(delays)

    def metrics(self) -> tuple[str, bytes]:
        """The workers' metrics, this process's, then TorchServe's own while it answers."""
        text = self._exposition.text() + self._vitals.text()
        with contextlib.suppress(requests.RequestException):
            text += self._torchserve.metrics(timeout=2.0)
        return CONTENT_TYPE, text

    def liveness(self) -> tuple[int, dict[str, Any]]:
        """200 while this process can still recover by itself; else 503 and why it cannot."""
        code = self._torchserve.exit_code
        if code is not None:
            return 503, {"status": "dead", "reason": f"TorchServe ended with exit code {code}"}
        if self._started:
            try:
                given_up = self._torchserve.has_given_up(timeout=2.0)
                self._last_answer = time.monotonic()
            except requests.RequestException:
                silence = time.monotonic() - self._last_answer
                if silence > _UNRESPONSIVE_SECONDS:
                    reason = f"TorchServe has not answered for {silence:.0f} s"
                    return 503, {"status": "dead", "reason": reason}
            else:
                if given_up:
                    reason = "TorchServe has given up restarting a worker"
                    return 503, {"status": "dead", "reason": reason}
        return 200, {"status": "alive"}

    def readiness(self) -> tuple[int, dict[str, Any]]:
        """200 when every model has its workers and has answered; else 503, which model, and why."""
        models: dict[str, dict[str, Any]] = {}
        with self._readiness_lock:
            for archive in self._archives:
                status, reason = self._look_at(archive)
                key = (
                    archive.name
                    if archive.name not in models
                    else f"{archive.name}/{archive.version}"
                )
                models[key] = {
                    "version": archive.version,
                    "ready": reason is None,
                    "workers": len(status.ready) if status else 0,
                    "queued": status.pending if status else 0,
                }
                if reason:
                    models[key]["reason"] = reason
        if self._draining:
            return 503, {"status": "draining", "models": models}
        if all(model["ready"] for model in models.values()):
            self._started = True
            return 200, {"status": "ready", "models": models}
        return 503, {"status": "not ready", "models": models}

    def _look_at(self, archive: Archive) -> tuple[ModelStatus | None, str | None]:
        """What TorchServe says of a model, and why it is not ready, if it is not."""
        failure = self._torchserve.load_failure(archive)
        reason = f"its worker failed to load it: {failure}" if failure else None
        try:
            status = self._torchserve.status(archive)
        except requests.RequestException:
            return None, reason or "TorchServe is not answering"
        if reason:
            return status, reason
        if status is None:
            return None, "TorchServe refused the archive; its reason is in the log"
        if len(status.ready) < max(status.minimum, 1):
            return status, f"{len(status.ready)} of {status.minimum} workers ready"
        if not status.ready <= self._warm.get(archive.file, frozenset()):
            reason = self._torchserve.warm_up(archive)
            if reason:
                return status, reason
            self._warm[archive.file] = status.ready
        return status, None


def check_ports(settings: Settings) -> None:
    """Try to bind every address, because TorchServe would take a minute to say that it cannot.

    Raises:
        ServerError: one is in use or is not this machine's, or two are the same.
    """
    taken: dict[tuple[str, int], str] = {}
    for address in settings.addresses:
        if address.port == 0:
            continue
        where = f"{address.host}:{address.port}"
        other = taken.setdefault((address.host, address.port), address.variable)
        if other != address.variable:
            raise ServerError(f"{other} and {address.variable} are both {where}")
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((address.host, address.port))
            except OSError as error:
                reason = (
                    "is in use"
                    if error.errno == errno.EADDRINUSE
                    else f"cannot be used: {error.strerror}"
                )
                raise ServerError(
                    f"address {where} {reason}; {address.variable} moves it"
                ) from None
