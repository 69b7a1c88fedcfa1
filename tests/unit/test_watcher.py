import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handler.card import ModelCard
from loadtest.servers import wait_until
from server.store import Archive
from server.torchserve import ModelStatus
from server.unix import Response
from server.watcher import NO_ANSWER, STALE_SECONDS, Watcher
from tests.untrained import make_card


class Frontend:
    """A TorchServe whose answers the test sets."""

    def __init__(self, *archives: Archive) -> None:
        self.archives = archives
        self.statuses = {a.key: ModelStatus(1, frozenset({7}), 0) for a in archives}
        self.failures: dict[str, str] = {}
        self.without_gpu: dict[str, str] = {}
        self.answer = Response(200, json.dumps({"predictions": [{"label": 1}]}).encode())
        self.frozen = threading.Event()
        self.silent = False
        self.warm_ups: list[str] = []
        self.hold = threading.Event()
        self.hold.set()

    def status(self, archive: Archive, timeout: float) -> ModelStatus | None:
        if self.frozen.is_set():
            self.frozen.wait()
            threading.Event().wait(timeout)
            raise TimeoutError
        if self.silent:
            raise ConnectionRefusedError
        return self.statuses.get(archive.key)

    def load_failure(self, archive: Archive) -> str | None:
        return self.failures.get(archive.key)

    def lacks_gpu(self, archive: Archive) -> str | None:
        return self.without_gpu.get(archive.key)

    def predict(self, archive: Archive, body: bytes, _: float) -> Response:
        assert json.loads(body) == {"instances": [[0, 1]]}
        self.warm_ups.append(archive.key)
        self.hold.wait(30)
        return self.answer

    def metrics(self, _: float) -> bytes:
        return b"up 1\n"

    def has_given_up(self, _: float) -> bool:
        return False

    def resident_memory(self) -> Any:
        yield from [("worker", 3), ("worker", 4)]

    def worker_starts(self) -> int:
        return 2


def archive(name: str = "xor", version: str = "1.0", card: ModelCard | None = None) -> Archive:
    return Archive(Path(f"{name}.mar"), name, version, card, 1, "")


@pytest.fixture
def card() -> ModelCard:
    return replace(make_card("xor"), example={"instances": [[0, 1]]}, example_label=1)


def watch(frontend: Frontend) -> Watcher:
    watcher = Watcher(frontend)  # type: ignore[arg-type]
    assert [model.reason for model in watcher.snapshot.models] == [NO_ANSWER] * len(
        frontend.archives
    )
    watcher.start()
    return watcher


def test_ready_once_the_example_is_answered(card: ModelCard) -> None:
    frontend = Frontend(archive(card=card))
    watcher = watch(frontend)
    wait_until(lambda: watcher.snapshot.is_ready)
    snapshot = watcher.refresh(5)
    assert snapshot.metrics == b"up 1\n"
    assert dict(snapshot.memory) == {"worker": 7}
    assert snapshot.worker_starts == 2
    assert frontend.warm_ups == ["xor/1.0"]
    watcher.stop()


def test_one_worker_is_enough_once_all_were_there(card: ModelCard) -> None:
    frontend = Frontend(archive(card=card))
    frontend.statuses["xor/1.0"] = ModelStatus(2, frozenset({7}), 0)
    watcher = watch(frontend)
    wait_until(lambda: watcher.snapshot.models[0].reason == "1 of 2 workers ready")
    frontend.statuses["xor/1.0"] = ModelStatus(2, frozenset({7, 8}), 0)
    wait_until(lambda: watcher.snapshot.is_ready)
    frontend.statuses["xor/1.0"] = ModelStatus(2, frozenset({8}), 0)
    assert watcher.refresh(5).is_ready
    frontend.statuses["xor/1.0"] = ModelStatus(2, frozenset(), 0)
    assert watcher.refresh(5).models[0].reason == "0 of 2 workers ready"
    watcher.stop()


def test_a_new_worker_does_not_wait_behind_a_full_queue(card: ModelCard) -> None:
    frontend = Frontend(archive(card=card))
    watcher = watch(frontend)
    wait_until(lambda: watcher.snapshot.is_ready)
    # Whatever is sent now is not answered.
    frontend.hold.clear()
    frontend.statuses["xor/1.0"] = ModelStatus(1, frozenset({8}), 64)
    snapshot = watcher.refresh(5)
    assert snapshot.is_ready
    assert snapshot.models[0].queued == 64
    assert frontend.warm_ups == ["xor/1.0"]
    frontend.hold.set()
    watcher.stop()


def test_a_missing_gpu_is_the_reason(card: ModelCard) -> None:
    frontend = Frontend(archive(card=card))
    frontend.without_gpu["xor/1.0"] = "No CUDA GPUs are available"
    watcher = watch(frontend)
    wait_until(lambda: watcher.snapshot.models[0].lacks_gpu)
    assert "computes on the CPU: No CUDA GPUs" in (watcher.snapshot.models[0].reason or "")
    assert not watcher.snapshot.is_ready
    del frontend.without_gpu["xor/1.0"]
    wait_until(lambda: watcher.snapshot.is_ready)
    watcher.stop()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Response(200, b'{"predictions": [{"label": 0}]}'), "is 0, not 1"),
        (Response(500, b"no"), "got 500: no"),
        (Response(200, b"[]"), "got an answer of another form"),
    ],
)
def test_a_wrong_answer_is_the_reason(card: ModelCard, answer: Response, reason: str) -> None:
    frontend = Frontend(archive(card=card))
    frontend.answer = answer
    watcher = watch(frontend)
    wait_until(lambda: reason in (watcher.snapshot.models[0].reason or ""))
    watcher.stop()


def test_one_model_that_warms_up_does_not_hide_the_other(card: ModelCard) -> None:
    frontend = Frontend(archive(card=card), archive("other"))
    frontend.hold.clear()
    watcher = watch(frontend)
    wait_until(lambda: watcher.snapshot.models[0].reason == "warming up")
    assert watcher.snapshot.models[1].reason is None
    assert not watcher.snapshot.is_ready
    frontend.hold.set()
    wait_until(lambda: watcher.snapshot.is_ready)
    watcher.stop()


def test_two_versions_are_told_apart() -> None:
    good, bad = archive(version="1.0"), archive(version="2.0")
    frontend = Frontend(good, bad)
    frontend.failures[bad.key] = "LookupError: x"
    watcher = watch(frontend)
    wait_until(lambda: watcher.snapshot.looked)
    first, second = watcher.snapshot.models
    assert first.reason is None
    assert second.reason == "its worker failed to load it: LookupError: x"
    watcher.stop()


def test_missing_workers_and_refused_archives() -> None:
    frontend = Frontend(archive("a"), archive("b"))
    frontend.statuses["a/1.0"] = ModelStatus(2, frozenset({1}), 0)
    del frontend.statuses["b/1.0"]
    watcher = watch(frontend)
    wait_until(lambda: watcher.snapshot.looked)
    assert [model.reason for model in watcher.snapshot.models] == [
        "1 of 2 workers ready",
        "TorchServe refused the archive; its reason is in the log",
    ]
    watcher.stop()


def test_reading_a_frozen_frontend_takes_the_timeout_and_shows_its_age() -> None:
    frontend = Frontend(archive())
    watcher = watch(frontend)
    wait_until(lambda: watcher.snapshot.is_ready)
    last = watcher.refresh(5)
    frontend.frozen.set()
    assert watcher.refresh(0.01).answered == watcher.refresh(0.01).answered >= last.answered
    stale = replace(last, answered=last.answered - STALE_SECONDS)
    assert not stale.is_ready
    assert "TorchServe has not answered for" in (stale.reason(stale.models[0]) or "")
    watcher.stop()


def test_a_missing_frontend_is_the_reason() -> None:
    frontend = Frontend(archive())
    watcher = watch(frontend)
    wait_until(lambda: watcher.snapshot.is_ready)
    frontend.silent = True
    wait_until(lambda: watcher.snapshot.models[0].reason == NO_ANSWER)
    watcher.stop()
