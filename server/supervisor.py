"""Supervises the service: start-up, health, restarts, changes of models, graceful shutdown.

One loop in the main thread owns every process: generations, which are a TorchServe with its watcher
each, and front doors. Other threads only read what the loop publishes, or ask it for a reload.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from server.control import ControlServer, Server, clients_app, operators_app
from server.counters import Succession
from server.door import Door, DoorError, Route, read_tokens, routes
from server.exposition import Exposition
from server.metrics import ServerMetrics, Tally
from server.run_directory import RunDirectory, sweep
from server.settings import Address, Settings
from server.store import Archive, StoreError, copy_archives, find_archives
from server.torchserve import TorchServe, TorchServeError
from server.watcher import ModelState, Snapshot, Watcher

_TICK_SECONDS = 0.05
# Waits before a process that died is started again: it may have died of something that passes.
_BACK_OFF_SECONDS = (0.0, 1.0, 2.0, 5.0, 10.0)
# After this many starts in a row that failed or did not last, /livez gives up.
_MAX_FAILURES = len(_BACK_OFF_SECONDS)
_LASTING_SECONDS = 60.0
# A frontend that has not answered for so long will not come back by itself.
_UNRESPONSIVE_SECONDS = 60.0
# The door passes everything on, and is to be replaced sooner; asking it costs nothing. One that is
# merely short of processor time answers within these.
_DOOR_SECONDS, _DOOR_SILENT_SECONDS, _DOOR_UNRESPONSIVE_SECONDS = 1.0, 2.0, 10.0
# A scrape waits this long for a frontend to answer, and then shows what it said before.
_REFRESH_SECONDS = 0.4
# At the end only idle connections are left: how long they may take to send the request that is
# answered with `Connection: close`. Longer than `timeout http-request` of the door, so that headers
# that are under way arrive.
_IDLE_SECONDS = 8.0
# Connections that wait for the door to accept them; the kernel caps it at net.core.somaxconn.
_BACKLOG = 4096
# In which the door accepts the connections that the kernel has already made.
_ACCEPT_SECONDS = 0.1
_SO_ATTACH_FILTER, _BPF_RET = 26, 6
# Between looks at the files of tokens and of the certificate.
_FILES_SECONDS = 2.0
# Between looks for metrics of workers that have died: a scrape folds them as well, but a server may
# have nobody who scrapes it, and each worker leaves up to 3 MiB.
_FOLD_SECONDS = 5.0


class ServerError(Exception):
    """The server could not start or could not go on; the message is all a user needs to read."""


@dataclass
class Generation:
    """One TorchServe with its watcher."""

    number: int
    torchserve: TorchServe
    watcher: Watcher
    started: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """For counters."""
        return f"generation-{self.number}"

    @property
    def store(self) -> Path:
        """The directory of its archives."""
        return self.torchserve.archives[0].file.parent

    def failure(self) -> str | None:
        """Why it will never be ready, if that is known."""
        code = self.torchserve.exit_code
        if code is not None:
            words = self.torchserve.last_words()
            return f"TorchServe ended by itself with exit code {code}" + (
                f": {words[0]}" if words else ""
            )
        for model in self.watcher.snapshot.models:
            if model.failure:
                return f"model {model.archive.name} failed to load: {model.failure}"
        return None

    def end(self) -> None:
        """Kill its processes."""
        self.watcher.stop()
        self.torchserve.kill()


@dataclass
class Reload:
    """A requested change of models."""

    done: threading.Event = field(default_factory=threading.Event)
    status: int = 0
    report: dict[str, Any] = field(default_factory=dict)

    def answer(self, code: int, **report: Any) -> None:
        """Give those who wait for it the outcome."""
        self.status, self.report = code, report
        self.done.set()


class Failures:
    """Failures in a row of something that is retried with back-off."""

    def __init__(self) -> None:
        self.count = 0
        self.reason = ""
        self._until = 0.0

    def add(self, reason: str) -> None:
        """Count a failure."""
        wait = _BACK_OFF_SECONDS[min(self.count, len(_BACK_OFF_SECONDS) - 1)]
        self.count += 1
        self.reason = reason
        self._until = time.monotonic() + wait

    def forget(self) -> None:
        """Start over: it has lasted."""
        self.count = 0

    @property
    def may_retry(self) -> bool:
        """Whether the back-off is over."""
        return time.monotonic() >= self._until


class Supervisor:
    """One run of the service.

    Args:
        settings: the configuration.
        archives: what to serve at first, at least one.

    Raises:
        ServerError: no temporary directory can be written.
    """

    def __init__(self, settings: Settings, archives: list[Archive]) -> None:
        self._settings = settings
        self._archives = archives
        try:
            sweep()
            self._run_directory = RunDirectory()
            self._directory = self._run_directory.path
            self._metrics_directory = self._directory / "metrics"
            self._metrics_directory.mkdir()
        except OSError as error:
            raise ServerError(f"no directory for the run (TMPDIR): {error}") from None
        self._control_socket = self._directory / "control.sock"
        self._grpc_socket = self._directory / "grpc.sock"
        self._internal_socket = self._directory / "internal.sock"
        self._listeners: dict[str, socket.socket] = {}
        self._signals: list[signal.Signals] = []
        self._wake = threading.Event()
        self._started = False
        self._draining = False
        # The generation that requests go to, and one that is to take over once it is ready.
        self._current: Generation | None = None
        self._candidate: Generation | None = None
        self._generations = self._stores = 0
        self._door: Door | None = None
        self._doors = 0
        self._ways: list[Route] = []
        # Doors that stop, and the generations that they still need.
        self._leaving: list[tuple[Door, Generation | None, float]] = []
        self._torchserve_failures = Failures()
        self._door_failures = Failures()
        self._door_started = 0.0
        # When the door was asked last, and when it was asked first without an answer since.
        self._door_asked = 0.0
        self._door_silent: float | None = None
        # Reloads that were asked for, and those that the candidate is the answer to.
        self._reloads: list[Reload] = []
        self._pending: list[Reload] = []
        self._hang_up = False
        self._files_seen: tuple[Any, ...] = ()
        self._files_looked = 0.0
        self._folded = 0.0
        self.tally = Tally()
        self._exposition = Exposition(self._metrics_directory)
        self._torchserve_metrics = Succession()
        self._door_metrics = Succession()
        self._server_metrics = ServerMetrics(
            lambda: self.snapshot, self.tally, lambda: self._missing_patches
        )

    # --- The life of the service.

    def run(self) -> int:
        """Serve until a signal comes.

        Returns:
            The exit code: 0 after a drain, 128 plus the signal's number where a second one cut the
            drain short, 1 where requests were still in flight at its end.

        Raises:
            ServerError: the server could not start.
            TorchServeError: there is no JVM.
            DoorError: there is no HAProxy, or it refuses the configuration.
        """
        try:
            with self._catch_signals(), contextlib.ExitStack() as stack:
                self._bind(stack)
                control = self._control(stack)
                control.start()
                stack.callback(control.stop)
                stack.callback(self._end_everything)
                self._files_seen = self._files()
                self._open_door([], None)
                self._candidate = self._generation(self._copy(self._archives))
                self._wait_until_ready()
                if self._started:
                    self._announce()
                    self._serve()
                return self._drain()
        finally:
            self._run_directory.remove()

    @contextlib.contextmanager
    def _catch_signals(self) -> Iterator[None]:
        def note(number: int, _: FrameType | None) -> None:
            if number == signal.SIGHUP:
                self._hang_up = True
            else:
                self._signals.append(signal.Signals(number))
            self._wake.set()

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        previous = {number: signal.signal(number, note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _bind(self, stack: contextlib.ExitStack) -> None:
        """Bind every address, so that one in use is reported before anything is started."""
        addresses = {"telemetry": self._settings.telemetry, "inference": self._settings.inference}
        if self._settings.grpc:
            addresses["grpc"] = self._settings.grpc
        check_distinct(list(addresses.values()))
        for name, address in addresses.items():
            self._listeners[name] = stack.enter_context(bind(address))
        if self._settings.grpc:
            self._listeners["internal"] = stack.enter_context(bind_unix(self._internal_socket))

    def _control(self, stack: contextlib.ExitStack) -> ControlServer:
        local = stack.enter_context(bind_unix(self._control_socket))
        telemetry = self._listeners.pop("telemetry")
        operators = operators_app(self, self._settings.token_file)
        clients = clients_app(self, has_tokens=self._settings.token_file is not None)
        return ControlServer([(operators, telemetry), (clients, local)], self._grpc())

    def _grpc(self) -> list[Server]:
        if not self._settings.grpc:
            return []
        # Its handlers for processes that fork would warn that they cannot be of use.
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
        from server.grpc_api import GrpcServer  # takes 0.2 s

        return [GrpcServer(self, self._grpc_socket, self._internal_socket)]

    def _wait_until_ready(self) -> None:
        """Wait for every model, or for a signal."""
        while not self._signals and not self._started:
            assert self._candidate
            failure = self._candidate.failure() or self._overdue(self._candidate)
            if failure:
                raise ServerError(failure)
            if self._candidate.watcher.snapshot.is_ready:
                self._promote(self._candidate)
                self._started = True
            self._wait()

    def _overdue(self, generation: Generation) -> str | None:
        seconds = self._settings.startup_timeout
        if time.monotonic() - generation.started <= seconds:
            return None
        snapshot = generation.watcher.snapshot
        reasons = "; ".join(
            f"{model.archive.name}: {snapshot.reason(model)}"
            for model in snapshot.models
            if snapshot.reason(model)
        )
        return f"not ready within {seconds:g} s (TS_DEFAULT_STARTUP_TIMEOUT): {reasons}"

    def _announce(self) -> None:
        """Print what is served, with the example commands of each model's card."""
        inference, telemetry = self._settings.inference.url, self._settings.telemetry.url
        if self._settings.tls_certificate:
            inference = inference.replace("http:", "https:")
        lines = [f"serving {', '.join(f'{a.name} {a.version}' for a in self._archives)}"]
        for archive in self._archives:
            for command in archive.card.usage if archive.card else ():
                url = f"{inference}/predictions/{archive.name}"
                lines.append(f"  {command.replace('URL', url)}")
        lines.append(f"readiness at {telemetry}/readyz; Ctrl-C stops")
        print("\n".join(lines), flush=True)

    def _serve(self) -> None:
        """Run the loop until a signal comes."""
        while not self._signals:
            self._tend_door()
            self._tend_leaving()
            self._tend_generation()
            self._tend_reload()
            self._tend_files()
            self._tend_metrics()
            self._wait()

    def _wait(self) -> None:
        self._wake.wait(_TICK_SECONDS)
        self._wake.clear()

    # --- Generations.

    def _copy(self, archives: list[Archive]) -> list[Archive]:
        self._stores += 1
        return copy_archives(archives, self._directory / f"store-{self._stores}")

    def _generation(self, archives: list[Archive]) -> Generation:
        self._generations += 1
        torchserve = TorchServe(
            self._settings,
            archives,
            self._directory / str(self._generations),
            self._metrics_directory,
        )
        torchserve.start()
        self.tally.torchserve_starts += 1
        watcher = Watcher(torchserve)
        watcher.start()
        return Generation(self._generations, torchserve, watcher)

    def _promote(self, generation: Generation) -> None:
        """Have requests go to a generation that is ready; the one before it drains.

        Raises:
            DoorError: the door did not open; everything stays as it was.
        """
        snapshot = generation.watcher.snapshot
        workers = {model.archive.key: model.minimum for model in snapshot.models}
        archives = list(generation.torchserve.archives)
        ways = routes(archives, workers, self._settings.heap_bytes)
        previous = self._current
        self._open_door(ways, generation, previous)
        # Only now: readiness is that of the generation that requests go to.
        self._current, self._candidate = generation, None
        self._archives = archives
        if previous:
            previous.watcher.stop()

    def _discard(self, generation: Generation) -> None:
        """End a generation, and keep what it counted."""
        generation.end()
        self._torchserve_metrics.end(generation.name)
        self.tally.worker_starts[generation.name] = generation.torchserve.worker_starts()
        shutil.rmtree(generation.torchserve.directory, ignore_errors=True)
        # A generation that was started again after a crash shares the archives of the one before.
        users = [each for each in (self._current, self._candidate) if each]
        if generation.store not in [each.store for each in users]:
            shutil.rmtree(generation.store, ignore_errors=True)

    def _tend_generation(self) -> None:
        """Replace a generation that has died or cannot recover; promote one that is ready."""
        current, candidate = self._current, self._candidate
        reason = self._reason_to_replace(current)
        if current and not reason and time.monotonic() - current.started > _LASTING_SECONDS:
            self._torchserve_failures.forget()
        if candidate:
            failure = candidate.failure() or self._overdue(candidate)
            if failure is None and candidate.watcher.snapshot.is_ready:
                try:
                    self._promote(candidate)
                except DoorError as error:
                    failure = str(error)
            if failure:
                self._candidate = None
                self._discard(candidate)
                self._fail_reload(failure)
                if reason:
                    _warn(f"TorchServe did not start: {failure}")
            elif self._candidate is None:
                self._finish_reload()
            return
        if reason is None or not self._torchserve_failures.may_retry:
            return
        self._torchserve_failures.add(reason)
        _warn(f"{reason}; starting TorchServe again")
        try:
            self._candidate = self._generation(self._archives)
        except (OSError, TorchServeError) as error:
            _warn(f"TorchServe did not start: {error}")

    def _reason_to_replace(self, generation: Generation | None) -> str | None:
        """Why a generation cannot go on, or None where it can."""
        if generation is None:
            return "there is no TorchServe"
        code = generation.torchserve.exit_code
        if code is not None:
            return f"TorchServe ended with exit code {code}"
        snapshot = generation.watcher.snapshot
        if snapshot.given_up:
            return "TorchServe has given up restarting a worker"
        if snapshot.age > _UNRESPONSIVE_SECONDS:
            return f"TorchServe has not answered for {snapshot.age:.0f} s"
        return None

    # --- Reloads.

    def reload(self) -> tuple[int, dict[str, Any]]:
        """Serve the store as it is now; for other threads. Returns when that is done or refused."""
        if self._draining or not self._started:
            state = "draining" if self._draining else "starting"
            return 503, {"status": "refused", "reason": f"the server is {state}"}
        wanted = Reload()
        self._reloads.append(wanted)
        self._wake.set()
        # Somewhat longer than a start may take, which the loop itself ends.
        if not wanted.done.wait(self._settings.startup_timeout + 30):
            return 503, {"status": "refused", "reason": "the server did not come to it"}
        return wanted.status, wanted.report

    def _tend_reload(self) -> None:
        """Begin a requested reload; requests that come meanwhile get the next one."""
        if self._hang_up:
            self._hang_up = False
            self._reloads.append(Reload())
        if self._candidate or not self._reloads:
            return
        self._pending, self._reloads = self._reloads, []
        try:
            archives = find_archives(self._settings.model_store, self._settings.models)
            self._candidate = self._generation(self._copy(archives))
        except (OSError, StoreError, TorchServeError) as error:
            self._fail_reload(str(error))

    def _fail_reload(self, reason: str) -> None:
        if not self._pending:
            return
        self.tally.reloads["refused"] += 1
        _warn(f"reload refused, the models stay as they were: {reason}")
        for wanted in self._pending:
            wanted.answer(409, status="refused", reason=reason)
        self._pending = []

    def _finish_reload(self) -> None:
        if not self._pending:
            return
        self.tally.reloads["done"] += 1
        models = {archive.key: archive.sha256 for archive in self._archives}
        print(f"reloaded: serving {', '.join(models)}", flush=True)
        for wanted in self._pending:
            wanted.answer(200, status="reloaded", models=models)
        self._pending = []

    # --- The door.

    def _open_door(
        self,
        ways: list[Route],
        generation: Generation | None,
        previous: Generation | None = None,
    ) -> None:
        """Start a door; the previous one stops accepting and leaves.

        Raises:
            DoorError: it did not start; the one before it stays.
        """
        self._doors += 1
        door = Door(
            self._settings,
            self._directory / f"door-{self._doors}",
            self._listeners,
            self._control_socket,
            self._grpc_socket,
        )
        try:
            door.start(
                ways,
                generation.torchserve.inference if generation else None,
                generation.torchserve.grpc_port if generation else None,
            )
        except DoorError:
            door.kill()
            raise
        self.tally.door_starts += 1
        self._door_started = self._door_asked = time.monotonic()
        self._door_silent = None
        old, self._door = self._door, door
        self._ways = ways
        self._door_metrics.update(door.name, door.metrics())
        if old:
            old.stop_accepting()
            deadline = time.monotonic() + self._settings.drain_timeout
            self._door_metrics.update(old.name, old.metrics())
            self._leaving.append((old, previous, deadline))
        elif previous:
            self._discard(previous)

    def _tend_door(self) -> None:
        """Start the door again if it has died, or stands still."""
        assert self._door
        self._ask_door(self._door)
        if self._door.exit_code is None:
            if time.monotonic() - self._door_started > _LASTING_SECONDS:
                self._door_failures.forget()
            return
        if not self._door_failures.may_retry:
            return
        dead = self._door
        reason = f"the front door ended with exit code {dead.exit_code}"
        _warn(f"{reason}; starting it again")
        self._door_failures.add(reason)
        self._door = None
        try:
            self._open_door(self._ways, self._current)
        except DoorError as error:
            _warn(str(error))
            self._door = dead
            return
        dead.kill()
        self._door_metrics.end(dead.name)

    def _ask_door(self, door: Door) -> None:
        """Note whether the door answers; kill one that has not for long."""
        now = time.monotonic()
        if now - self._door_asked < _DOOR_SECONDS or door.exit_code is not None:
            return
        if door.is_answering():
            self._door_silent = None
        elif self._door_silent is None:
            self._door_silent = now
        elif now - self._door_silent > _DOOR_UNRESPONSIVE_SECONDS:
            _warn(f"the front door has not answered for {now - self._door_silent:.0f} s")
            door.kill()
        self._door_asked = time.monotonic()

    def _tend_leaving(self) -> None:
        """End doors that have answered everything, and the generations that only they used."""
        staying = []
        for door, generation, deadline in self._leaving:
            if time.monotonic() < deadline and _has_clients(door):
                staying.append((door, generation, deadline))
                continue
            self._door_metrics.update(door.name, door.finish())
            self._door_metrics.end(door.name)
            if generation:
                self._discard(generation)
        self._leaving = staying

    def _files(self) -> tuple[Any, ...]:
        """The state of the files that the door reads, to compare with a later one."""
        seen = []
        for file in (self._settings.token_file, self._settings.tls_certificate):
            try:
                state = file.stat() if file else None
                seen.append(state and (state.st_mtime_ns, state.st_ino, state.st_size))
            except OSError:
                seen.append(None)
        return tuple(seen)

    def _tend_files(self) -> None:
        """Open a new door when the tokens or the certificate have changed."""
        now = time.monotonic()
        if now - self._files_looked < _FILES_SECONDS:
            return
        self._files_looked = now
        seen = self._files()
        if seen == self._files_seen:
            return
        self._files_seen = seen
        try:
            if self._settings.token_file:
                read_tokens(self._settings.token_file)
            self._open_door(self._ways, self._current)
        except DoorError as error:
            _warn(f"tokens and certificate stay as they were: {error}")
        else:
            print("tokens and certificate were read again", flush=True)

    def _tend_metrics(self) -> None:
        """Have the files of dead workers' metrics added up."""
        now = time.monotonic()
        if now - self._folded >= _FOLD_SECONDS:
            self._folded = now
            self._exposition.fold()

    # --- The end.

    def _drain(self) -> int:
        """Answer what is in flight, then return the exit code."""
        self._draining = True
        for wanted in [*self._pending, *self._reloads]:
            wanted.answer(503, status="refused", reason="the server is draining")
        # The grace is for balancers that lag behind: none routes to a server in a terminal, nor to
        # one that was never ready.
        by_hand = self._signals[0] == signal.SIGINT
        grace = self._settings.drain_grace if self._started and not by_hand else 0.0
        print(f"stopping: {self._signals[0].name}, draining", flush=True)
        grace_end = time.monotonic() + grace
        if self._door:
            self._door.tell_to_close()
        while time.monotonic() < grace_end and len(self._signals) < 2:
            self._tend_door()
            self._tend_leaving()
            self._wait()
        deadline = time.monotonic() + self._settings.drain_timeout
        idle_end = time.monotonic() + (0.0 if by_hand else _IDLE_SECONDS)
        for listener in self._listeners.values():
            ignore_new_connections(listener)
        time.sleep(_ACCEPT_SECONDS)
        for listener in self._listeners.values():
            listener.close()
        if self._door:
            self._door.stop_accepting()
        return self._wait_for_answers(deadline, idle_end)

    def _wait_for_answers(self, deadline: float, idle_end: float) -> int:
        assert self._door
        while len(self._signals) < 2:
            self._tend_leaving()
            doors = [self._door, *(door for door, _, _ in self._leaving)]
            now = time.monotonic()
            if not any(_is_answering(door) for door in doors) and (
                now >= idle_end or not any(_has_clients(door) for door in doors)
            ):
                print(f"stopped: {self._count_answers()}", flush=True)
                return 0
            if now > deadline:
                print(
                    f"error: requests were still in flight {self._settings.drain_timeout:g} s "
                    f"after the grace (DRAIN_TIMEOUT_SECONDS); {self._count_answers()}",
                    file=sys.stderr,
                    flush=True,
                )
                return 1
            self._wait()
        print(f"stopped at once: second signal, {self._signals[1].name}", flush=True)
        return 128 + self._signals[1]

    def _count_answers(self) -> str:
        """How many requests the doors took in, and how many they answered."""
        assert self._door
        for door in [*(door for door, _, _ in self._leaving), self._door]:
            self._door_metrics.update(door.name, door.finish())
        requests = self._door_metrics.total("haproxy_frontend_http_requests_total", "door")
        answers = self._door_metrics.total("haproxy_frontend_http_responses_total", "door")
        if answers >= requests:
            return f"every request was answered ({requests:,.0f})"
        return f"{answers:,.0f} of {requests:,.0f} requests were answered"

    def _end_everything(self) -> None:
        for door, generation, _ in self._leaving:
            door.kill()
            if generation:
                generation.end()
        if self._door:
            self._door.kill()
        for last in (self._candidate, self._current):
            if last:
                last.end()

    # --- What other threads read.

    @property
    def snapshot(self) -> Snapshot:
        """What was last seen of the generation that requests go to, or will first go to."""
        generation = self._current or self._candidate
        if generation is None:
            waiting = tuple(ModelState(archive, "not started yet") for archive in self._archives)
            return Snapshot(waiting, answered=time.monotonic())
        return generation.watcher.snapshot

    @property
    def _missing_patches(self) -> frozenset[str]:
        generation = self._current or self._candidate
        return frozenset(generation.torchserve.missing_patches if generation else ())

    def metrics(self) -> bytes:
        """Everything: the workers', this process's, TorchServe's own and the door's."""
        generation, door = self._current or self._candidate, self._door
        if generation:
            snapshot = generation.watcher.refresh(_REFRESH_SECONDS)
            self._torchserve_metrics.update(generation.name, snapshot.metrics)
        for each in (self._current, self._candidate):
            if each:
                starts = self.tally.worker_starts
                seen = each.watcher.snapshot.worker_starts
                starts[each.name] = max(starts.get(each.name, 0), seen)
        if door:
            self._door_metrics.update(door.name, door.metrics())
        doors = self._door_metrics.text()
        return (
            self._exposition.text()
            + self._server_metrics.text(doors)
            + self._torchserve_metrics.text()
            + doors
        )

    def liveness(self) -> tuple[int, dict[str, Any]]:
        """200 while this process can still recover by itself; else 503 and why it cannot."""
        for failures in (self._torchserve_failures, self._door_failures):
            if failures.count >= _MAX_FAILURES:
                reason = f"{failures.reason}, {failures.count} times in a row"
                return 503, {"status": "dead", "reason": reason}
        return 200, {"status": "alive"}

    def inference_socket(self) -> Path | None:
        """TorchServe's, or None before it is ready."""
        return self._current.torchserve.inference if self._current else None

    def models(self) -> list[ModelState]:
        """Each model as it was last seen, with the reason why it cannot answer now, if any."""
        snapshot, generation = self.snapshot, self._current
        if generation and generation.torchserve.exit_code is not None:
            return [replace(model, reason="TorchServe has ended") for model in snapshot.models]
        # The door opens when the last model is ready.
        waiting = None if generation else "the models are loading"
        return [
            replace(model, reason=snapshot.reason(model) or waiting) for model in snapshot.models
        ]

    def _door_reason(self) -> str | None:
        """Why the door passes nothing on, if it does not."""
        door, silent = self._door, self._door_silent
        if door is None or door.exit_code is not None:
            return "the front door has ended"
        if silent is not None and time.monotonic() - silent > _DOOR_SILENT_SECONDS:
            return "the front door is not answering"
        return None

    def readiness(self) -> tuple[int, dict[str, Any]]:
        """200 when every model can answer; else 503, which model, and why."""
        seen = self.models()
        models: dict[str, dict[str, Any]] = {}
        for model in seen:
            state: dict[str, Any] = {
                "version": model.archive.version,
                "ready": model.reason is None,
                "workers": model.workers,
                "queued": model.queued,
            }
            if model.reason:
                state["reason"] = model.reason
            several = sum(m.archive.name == model.archive.name for m in seen) > 1
            models[model.archive.key if several else model.archive.name] = state
        door = self._door_reason()
        status = "ready"
        if self._draining:
            status = "draining"
        elif not self._started:
            status = "starting"
        elif door or not all(state["ready"] for state in models.values()):
            status = "not ready"
        report: dict[str, Any] = {"status": status, "models": models}
        if status == "not ready" and door:
            report["reason"] = door
        if self._missing_patches:
            report["notes"] = [
                f"this TorchServe is not 0.12.0: {MISSING_PATCHES[patch]}"
                for patch in sorted(self._missing_patches)
            ]
        return (200 if status == "ready" else 503), report


MISSING_PATCHES = {
    "batch": "batches wait for up to their model's maxBatchDelay",
    "direct": "the frontend starts a thread for each batch",
    "retry": "requests of a worker that dies are lost",
    "turns": "all workers take batches at once, however few the processors are",
}


def bind(address: Address) -> socket.socket:
    """A socket that listens at an address.

    Raises:
        ServerError: the address is in use or is not this machine's.
    """
    host = address.host
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"  # noqa: S104 (a kernel without IPv6; the same as far as there is)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if host == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, address.port))
        # HAProxy leaves the backlog of a socket that listens already as it is.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = (
            "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        )
        raise ServerError(
            f"address {address.host}:{address.port} {reason}; {address.variable} moves it"
        ) from None
    return listener


def ignore_new_connections(listener: socket.socket) -> None:
    """Have the kernel drop new connections; those already made can still be accepted.

    Closing a listening socket resets the connections that are not accepted yet, and with them
    requests that were sent: 14 of 1,300 under clients that reconnect for every request. A client
    that is dropped tries again a second later, and is then refused.

    The filter is Linux's, of the one instruction to drop every packet (socket(7),
    SO_ATTACH_FILTER). A kernel without it closes as any server does.
    """
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RET, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def bind_unix(path: Path) -> socket.socket:
    """A socket that listens at a path."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(_BACKLOG)
    return listener


def check_distinct(addresses: list[Address]) -> None:
    """Refuse two listeners at one address.

    Raises:
        ServerError: naming both.
    """
    taken: dict[tuple[str, int], str] = {}
    for address in addresses:
        other = taken.setdefault((address.host, address.port), address.variable)
        if other != address.variable:
            where = f"{address.host}:{address.port}"
            raise ServerError(f"{other} and {address.variable} are both {where}")


def _is_answering(door: Door) -> bool:
    return _has_any(door, door.requests_under_way)


def _has_clients(door: Door) -> bool:
    return _has_any(door, door.connections)


def _has_any(door: Door, count: Callable[[], int]) -> bool:
    """Whether a door that runs counts any; if it does not answer, it may have some."""
    if door.exit_code is not None:
        return False
    try:
        return count() > 0
    except OSError:
        return True


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
