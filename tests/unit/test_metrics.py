"""Metrics without processes: process ids are injected, as in prometheus-client's own tests."""

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Histogram, values
from prometheus_client.parser import text_string_to_metric_families

from handler.batching import BatchHandler
from handler.errors import PayloadTooLargeError, RequestError
from handler.metrics import SECONDS, SIZES, STAGES, Metrics, observe_all
from handler.xor import XorHandler
from server.exposition import Exposition
from tests.untrained import Context, make_card

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
CONTRACT = {
    "inference_requests_total": {"code"},
    "inference_instances_total": set(),
    "inference_explanations_total": set(),
    "inference_stage_seconds": {"stage"},
    "inference_batch_seconds": set(),
    "inference_queue_seconds": set(),
    "inference_request_seconds": set(),
    "inference_sized_request_seconds": {"size"},
    "inference_batch_requests": set(),
    "inference_predictions_total": {"label"},
    "inference_confidence_ratio": set(),
    "inference_rejected_total": {"reason"},
    "inference_model_info": {"arch", "sha256", "device"},
}


def read(text: bytes) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    labels = {"model": "xor", "version": "1.0"} | labels
    return samples[name, frozenset(labels.items())]


class Workers:
    """Metrics of workers with made-up process ids."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.exposition = Exposition(directory)

    def start(self, process: int) -> Metrics:
        value_class = values.MultiProcessValue(lambda: process)
        self.monkeypatch.setattr(values, "ValueClass", value_class)
        return Metrics(make_card("xor"), "cpu", CollectorRegistry())

    def read(self) -> Samples:
        return read(self.exposition.text())


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    yield Workers(tmp_path, monkeypatch)
    values.close_all_multiprocess_files()


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_known_label_sets_exist_from_the_start(workers: Workers) -> None:
    workers.start(os.getpid())
    samples = workers.read()
    names = {name for name, _ in samples}
    for name, labels in CONTRACT.items():
        found = [dict(pairs) for n, pairs in samples if n in (name, f"{name}_count")]
        assert found, name
        for pairs in found:
            assert set(pairs) == {"model", "version"} | labels
    for code in ("200", "400", "413", "415", "500", "503", "507"):
        assert value(samples, "inference_requests_total", code=code) == 0
    for stage in STAGES:
        assert value(samples, "inference_stage_seconds_count", stage=stage) == 0
    for size in SIZES:
        assert value(samples, "inference_sized_request_seconds_count", size=size) == 0
    for label in ("0", "1"):
        assert value(samples, "inference_predictions_total", label=label) == 0
    for reason in ("malformed", "too_large", "unsupported_media_type", "overload"):
        assert value(samples, "inference_rejected_total", reason=reason) == 0
    assert not [name for name in names if not name.startswith("inference_")]
    info = {"arch": "none", "device": "cpu", "sha256": make_card("xor").torchscript_sha256}
    assert value(samples, "inference_model_info", **info) == 1
    assert (SECONDS[0], SECONDS[-1]) == (250e-6, 10)


def test_a_sum_is_the_same_in_whatever_order_workers_are_added_up() -> None:
    rng = random.Random(0)
    parts = [[rng.random() for _ in range(100)] for _ in range(20)]
    sums = []
    for order in (parts, parts[::-1]):
        total = 0.0
        for part in order:
            histogram = Histogram("a", "b", registry=CollectorRegistry())
            observe_all(histogram, part)
            total += histogram._sum.get()
        sums.append(total)
    assert sums[0] == sums[1]
    assert sums[0] == pytest.approx(sum(map(sum, parts)), abs=20 * 2**-21)


def test_a_batch_is_counted(workers: Workers) -> None:
    metrics = workers.start(os.getpid())
    errors = [RequestError("a"), RequestError("b"), PayloadTooLargeError("c")]
    metrics.batch([0.002, 20.0, *[None] * 6], errors, {0, 1}, seconds=0.003)
    metrics.stages(0.001, 0.0004, 0.1)
    metrics.predictions([1, 0, 1], [0.95, 0.5, 1.0])
    samples = workers.read()
    counts = {"200": 5, "400": 2, "413": 1, "415": 0}
    for code, count in counts.items():
        assert value(samples, "inference_requests_total", code=code) == count
    assert value(samples, "inference_rejected_total", reason="malformed") == 2
    assert value(samples, "inference_rejected_total", reason="too_large") == 1
    assert value(samples, "inference_instances_total") == 3
    assert value(samples, "inference_predictions_total", label="1") == 2
    assert value(samples, "inference_batch_requests_sum") == 8
    assert value(samples, "inference_batch_requests_bucket", le="4.0") == 0
    assert value(samples, "inference_batch_requests_bucket", le="8.0") == 1
    assert value(samples, "inference_queue_seconds_count") == 2
    assert value(samples, "inference_queue_seconds_bucket", le="10.0") == 1
    assert value(samples, "inference_request_seconds_count") == 8
    assert value(samples, "inference_request_seconds_bucket", le="0.0025") == 0
    assert value(samples, "inference_request_seconds_bucket", le="0.005") == 7
    assert value(samples, "inference_request_seconds_sum") == pytest.approx(20.002 + 8 * 0.003)
    assert value(samples, "inference_sized_request_seconds_count", size="one") == 6
    assert value(samples, "inference_sized_request_seconds_count", size="several") == 2
    assert value(samples, "inference_sized_request_seconds_bucket", size="several", le="10.0") == 1
    assert value(samples, "inference_stage_seconds_sum", stage="forward") == pytest.approx(
        0.0004, abs=2**-21
    )
    assert value(samples, "inference_confidence_ratio_bucket", le="0.5") == 1
    assert value(samples, "inference_confidence_ratio_bucket", le="1.0") == 3


def test_observing_many_values_at_once_equals_one_by_one() -> None:
    numbers = [0.0, 0.125, 0.125 + 2**-20, 3.0, 0.5, 0.5]
    one_by_one, at_once = (
        Histogram("h", "", buckets=(0.125, 0.5, 1), registry=CollectorRegistry()) for _ in range(2)
    )
    for number in numbers:
        one_by_one.observe(number)
    observe_all(at_once, numbers)
    observe_all(at_once, [])
    one, many = (
        [sample for sample in metric.samples if not sample.name.endswith("_created")]
        for histogram in (one_by_one, at_once)
        for metric in histogram.collect()
    )
    assert one == many


def test_counts_of_workers_add_up(workers: Workers) -> None:
    for process in (os.getpid(), os.getppid()):
        workers.start(process).batch([None] * 4, [], [], 0.1)
    samples = workers.read()
    assert value(samples, "inference_requests_total", code="200") == 8
    assert value(samples, "inference_batch_seconds_count") == 2


def test_no_counter_goes_down_when_a_worker_dies(
    workers: Workers, tmp_path: Path, dead: int
) -> None:
    workers.start(os.getpid()).batch([0.2, None, None], [], [], 0.1)
    (tmp_path / f"counter_{dead}.db").touch()  # killed while it was creating its file
    assert value(workers.read(), "inference_requests_total", code="200") == 3
    for round_ in range(1, 4):
        workers.start(dead).batch([None, None, 0.2, None], [RequestError("x")], [], 0.1)
        values.close_all_multiprocess_files()
        for _ in range(2):
            samples = workers.read()
            assert value(samples, "inference_requests_total", code="200") == 3 + 3 * round_
            assert value(samples, "inference_rejected_total", reason="malformed") == round_
            assert value(samples, "inference_queue_seconds_count") == 1 + round_
            assert value(samples, "inference_queue_seconds_sum") == pytest.approx(
                0.2 * (1 + round_)
            )
        assert not list(tmp_path.glob(f"*_{dead}.db"))
    assert sorted(file.name for file in tmp_path.glob("*_dead.db")) == [
        "counter_dead.db",
        "histogram_dead.db",
    ]


def test_the_model_info_of_a_dead_worker_is_removed(workers: Workers, dead: int) -> None:
    workers.start(dead)
    values.close_all_multiprocess_files()
    assert not [name for name, _ in workers.read() if name == "inference_model_info"]


def test_a_handler_counts_what_it_answers(
    loaded: Callable[[type[BatchHandler], str], BatchHandler], registry: CollectorRegistry
) -> None:
    handler = loaded(XorHandler, "xor")
    bodies: list[Any] = [b'{"instances": [[0, 1], [1, 1]]}', b"{", b" " * (2 << 20)]
    handler.handle([{"body": body} for body in bodies], Context(Path(), 3))

    def sample(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"model": "xor", "version": "1.0"} | labels)

    for code in ("200", "400", "413"):
        assert sample("inference_requests_total", code=code) == 1
    assert sample("inference_instances_total") == 2
    assert sample("inference_batch_requests_sum") == 3
    # The refused are counted as for one instance: what they would have been is not known.
    assert sample("inference_sized_request_seconds_count", size="one") == 2
    assert sample("inference_sized_request_seconds_count", size="several") == 1
    for stage in STAGES:
        assert sample("inference_stage_seconds_count", stage=stage) == (stage != "explain")
    in_stages = sum(sample("inference_stage_seconds_sum", stage=s) or 0 for s in STAGES)
    assert 0 < in_stages <= (sample("inference_batch_seconds_sum") or 0)
    assert sample("inference_confidence_ratio_count") == 2
