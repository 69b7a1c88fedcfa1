import subprocess
import sys
import time
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from server.metrics import ServerMetrics, Tally
from server.patches import PATCHES
from server.store import Archive
from server.supervisor import MISSING_PATCHES
from server.watcher import STALE_SECONDS, ModelState, Snapshot
from tests.serving import ROOT

DOOR = b"""\
haproxy_backend_http_responses_total{proxy="model:m",code="5xx"} 3
haproxy_backend_http_responses_total{proxy="control",code="5xx"} 9
haproxy_backend_connection_errors_total{proxy="model:m"} 2
haproxy_server_current_queue{proxy="model:m",server="small"} 4
haproxy_server_current_queue{proxy="model:m",server="large"} 1
"""


def read(snapshot: Snapshot, missing: frozenset[str] = frozenset()) -> dict[str, float]:
    """Every sample that is not memory, by name and the values of its labels."""
    metrics = ServerMetrics(
        lambda: snapshot,
        Tally(worker_starts={"generation-1": 5, "generation-2": 3}),
        lambda: missing,
    )
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(metrics.text(DOOR).decode())
        for sample in family.samples
    }


def snapshot(age: float = 0.0, reason: str | None = None) -> Snapshot:
    archive = Archive(Path("m.mar"), "m", "2.0", None, 1, "")
    model = ModelState(archive, reason, workers=2, minimum=2, queued=7)
    return Snapshot((model,), time.monotonic() - age)


def test_a_model_that_is_ready() -> None:
    samples = read(snapshot())
    assert samples["serving_model_ready m 2.0"] == 1
    assert samples["serving_workers m 2.0"] == 2
    assert samples["serving_queued_requests m 2.0"] == 7
    assert samples["serving_worker_starts_total"] == 8
    assert samples["serving_reloads_total done"] == 0
    assert samples["serving_resident_memory_bytes server"] > 10 << 20


def test_a_model_that_is_not_or_was_not_seen_for_long() -> None:
    assert read(snapshot(reason="no"))["serving_model_ready m 2.0"] == 0
    samples = read(snapshot(age=STALE_SECONDS + 1))
    assert samples["serving_model_ready m 2.0"] == 0
    assert samples["serving_snapshot_age_seconds"] > STALE_SECONDS


def test_what_clients_saw_is_by_model() -> None:
    samples = read(snapshot())
    assert samples["serving_responses_total m 5xx"] == 3
    assert samples["serving_refused_total m"] == 2
    assert samples["serving_waiting_requests m"] == 5
    assert not [name for name in samples if "control" in name]


def test_a_patch_that_does_not_fit_is_shown_and_explained() -> None:
    samples = read(snapshot(), frozenset({"batch"}))
    assert samples["serving_patch_missing batch"] == 1
    assert samples["serving_patch_missing retry"] == 0
    assert MISSING_PATCHES.keys() == PATCHES.keys()


def test_nothing_is_opened_between_fork_and_exec() -> None:
    """A library that is looked up there needs locks that other threads may hold."""
    code = "import ctypes, server.torchserve as t; ctypes.CDLL = None; t.die_with_parent()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
