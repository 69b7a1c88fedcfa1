"""Polls one TorchServe at a fixed interval, and publishes snapshots of its state.

Probes, scrapes, start-up and reloads read the last snapshot and wait for nobody, so that a frozen
frontend costs them nothing: with the JVM stopped, a scrape that asked TorchServe itself took 12 s.
"""

import collections
import contextlib
import http.client
import json
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from server.store import Archive
from server.torchserve import ModelStatus, TorchServe

# Between polls. A probe learns of a dead worker this much later; a poll costs the JVM about 2 ms.
_INTERVAL_SECONDS = 0.25
_TIMEOUT_SECONDS = 2.0
_WARM_UP_SECONDS = 10.0
# A frontend that has not answered for so long does not count as ready.
STALE_SECONDS = 3.0
NO_ANSWER = "TorchServe is not answering"


@dataclass(frozen=True)
class ModelState:
    """The last known state of one model.

    Attributes:
        archive: the model's archive.
        reason: why it cannot answer, or None if it can.
        failure: why its worker failed to load it, if that is the reason.
        workers: workers that have loaded it.
        minimum: workers that it should have.
        queued: requests that wait in TorchServe for a worker.
        lacks_gpu: whether it computes on the CPU where a GPU is required.
    """

    archive: Archive
    reason: str | None
    failure: str | None = None
    workers: int = 0
    minimum: int = 0
    queued: int = 0
    lacks_gpu: bool = False


@dataclass(frozen=True)
class Snapshot:
    """The state of TorchServe at one poll.

    Attributes:
        models: in the order of the archives.
        answered: `time.monotonic` of the last poll in which TorchServe answered everything; before
            the first, of the start.
        looked: `time.monotonic` at the beginning of the last poll that was completed.
        given_up: whether TorchServe has stopped restarting a worker.
        worker_starts: worker processes started so far.
        memory: resident bytes by kind of process, as of the last `Watcher.refresh`.
        metrics: TorchServe's own, in the text format, as of the last `Watcher.refresh` that it
            answered.
    """

    models: tuple[ModelState, ...]
    answered: float
    looked: float = 0.0
    given_up: bool = False
    worker_starts: int = 0
    memory: Mapping[str, int] = field(default_factory=dict)
    metrics: bytes = b""

    @property
    def age(self) -> float:
        """Seconds since TorchServe last answered everything."""
        return time.monotonic() - self.answered

    @property
    def is_ready(self) -> bool:
        """Whether every model can answer."""
        return self.age < STALE_SECONDS and not any(model.reason for model in self.models)

    def reason(self, model: ModelState) -> str | None:
        """Why a model cannot answer now, or None if it can."""
        if model.reason is None and self.age >= STALE_SECONDS:
            return f"TorchServe has not answered for {self.age:.0f} s"
        return model.reason


class Watcher:
    """Polls one TorchServe in a thread of its own, from `start` until `stop`.

    Args:
        torchserve: a process that was started.

    Attributes:
        snapshot: the last one; never changed, only replaced.
    """

    def __init__(self, torchserve: TorchServe) -> None:
        self._torchserve = torchserve
        waiting = tuple(ModelState(archive, NO_ANSWER) for archive in torchserve.archives)
        self.snapshot = Snapshot(waiting, answered=time.monotonic())
        # Models that can answer, by their keys: they have had all their workers and answered their
        # example. From then on one worker is enough, and none is sent the example again: clients'
        # requests would be before it, and a worker verifies and runs its model when it loads it.
        self._warm: set[str] = set()
        self._warming: dict[str, Future[str | None]] = {}
        # Models whose missing GPU is in the log.
        self._told: set[str] = set()
        # A warm-up may take seconds, in which the other models are to be watched.
        self._pool = ThreadPoolExecutor(len(torchserve.archives), thread_name_prefix="warm-up")
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._wants_metrics = threading.Event()
        self._looked = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        """Start polling."""
        self._thread.start()

    def stop(self) -> None:
        """Stop polling; the last snapshot stays."""
        self._stop.set()
        self._wake.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def refresh(self, timeout: float) -> Snapshot:
        """A new snapshot, or the last if TorchServe takes longer than `timeout` seconds."""
        asked = time.monotonic()
        self._wants_metrics.set()
        self._wake.set()
        with self._looked:
            self._looked.wait_for(lambda: self.snapshot.looked >= asked, timeout)
        return self.snapshot

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            snapshot = self._look()
            with self._looked:
                self.snapshot = snapshot
                self._looked.notify_all()
            self._wake.wait(_INTERVAL_SECONDS)

    def _look(self) -> Snapshot:
        looked, last = time.monotonic(), self.snapshot
        answered, metrics, given_up = last.answered, last.metrics, last.given_up
        memory: Mapping[str, int] = last.memory
        is_scrape = self._wants_metrics.is_set()
        self._wants_metrics.clear()
        models = []
        complete = True
        for archive in self._torchserve.archives:
            try:
                status = self._torchserve.status(archive, _TIMEOUT_SECONDS) if complete else None
            except (OSError, ValueError, http.client.HTTPException):
                complete, status = False, None
            models.append(self._state(archive, status, complete))
        if complete:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if is_scrape:
                    metrics = self._torchserve.metrics(_TIMEOUT_SECONDS)
                given_up = self._torchserve.has_given_up(_TIMEOUT_SECONDS)
                answered = time.monotonic()
        if is_scrape:  # it iterates over all processes of the machine
            memory = collections.Counter()
            for kind, resident in self._torchserve.resident_memory():
                memory[kind] += resident
        return Snapshot(
            tuple(models),
            answered,
            looked,
            given_up,
            self._torchserve.worker_starts(),
            memory,
            metrics,
        )

    def _state(self, archive: Archive, status: ModelStatus | None, answered: bool) -> ModelState:
        failure = self._torchserve.load_failure(archive)
        no_gpu = self._torchserve.lacks_gpu(archive)
        least = 1 if status is None or archive.key in self._warm else max(status.minimum, 1)
        if failure:
            reason: str | None = f"its worker failed to load it: {failure}"
        elif not answered:
            reason = NO_ANSWER
        elif status is None:
            reason = "TorchServe refused the archive; its reason is in the log"
        elif len(status.ready) < least:
            reason = f"{len(status.ready)} of {status.minimum} workers ready"
        elif no_gpu:
            reason = f"a GPU is required (REQUIRE_GPU), and it computes on the CPU: {no_gpu}"
            if archive.key not in self._told:
                self._told.add(archive.key)
                print(f"model {archive.name}: {reason}", file=sys.stderr, flush=True)
        else:
            reason = self._warm_up(archive)
        if status is None:
            return ModelState(archive, reason, failure)
        return ModelState(
            archive,
            reason,
            failure,
            len(status.ready),
            status.minimum,
            status.pending,
            no_gpu is not None,
        )

    def _warm_up(self, archive: Archive) -> str | None:
        """Send the example of the model's card until it was answered; return why it was not yet."""
        if archive.key in self._warm:
            return None
        if archive.card is None:
            self._warm.add(archive.key)
            return None
        if archive.key not in self._warming:
            self._warming[archive.key] = self._pool.submit(self._warm_up_reason, archive)
        # Most take a few milliseconds, and are over within this poll.
        with contextlib.suppress(TimeoutError):
            reason = self._warming[archive.key].result(_INTERVAL_SECONDS)
            del self._warming[archive.key]  # repeated at the next poll if it failed
            if reason is None:
                self._warm.add(archive.key)
            return reason
        return "warming up"

    def _warm_up_reason(self, archive: Archive) -> str | None:
        assert archive.card is not None
        body = json.dumps(archive.card.example).encode()
        try:
            answer = self._torchserve.predict(archive, body, _WARM_UP_SECONDS)
        except (OSError, http.client.HTTPException) as error:
            return f"the warm-up prediction got no answer: {error}"
        text = answer.body.decode(errors="replace").strip()
        if answer.status != 200:
            return f"the warm-up prediction got {answer.status}: {text}"
        try:
            label = json.loads(text)["predictions"][0]["label"]
        except (ValueError, LookupError, TypeError):
            return f"the warm-up prediction got an answer of another form: {text:.200}"
        if label != archive.card.example_label:
            return f"the warm-up prediction is {label}, not {archive.card.example_label}"
        return None
