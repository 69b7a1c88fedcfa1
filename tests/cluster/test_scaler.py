"""production's ScaledObject with KEDA and Prometheus: load scales up, calm down, blindness not."""

import contextlib
import time
from collections.abc import Iterator
from datetime import datetime
from http import HTTPStatus
from itertools import permutations
from typing import Any

import pytest

from loadtest import charts
from loadtest.traffic import Background
from tests.cluster import keda, prometheus
from tests.cluster.clients import Client
from tests.cluster.cluster import (
    DEPLOYMENT,
    SERVER,
    Cluster,
    define_custom_resources,
    documents,
)
from tests.cluster.namespaces import ProgramError
from tests.cluster.node import Node
from tests.cluster.prometheus import Prometheus
from tests.deploy.resources import Document
from tests.deploy.runbook import arguments
from tests.reliability.record import LONG
from tests.serving import ROOT

SCALER = "horizontalpodautoscaler/model-server"
# Users of dear requests, whose images take little room, so that workers are busy and not client,
# door and JVM. Not one batch more than there are users is ever computed, so they cannot want more
# than users / (2 workers * 0.6) pods.
DEAR: dict[str, Any] = {"users": 24, "keep_alive": False, "idle": 0.0, "instances": 256}
# They rather wait than be refused, until the pods are there that they need.
PATIENCE = "QUEUE_TIMEOUT_SECONDS=10"
CALM: dict[str, Any] = {"users": 4, "keep_alive": True, "idle": 0.1}


@pytest.fixture(scope="module")
def monitored(node: Node | None, service: Cluster) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the service as production's ServiceMonitor says."""
    if node is None:
        pytest.skip("needs KEDA and Prometheus of its own: shown on the tests' own node")
    define_custom_resources(node)
    resources = [d for d in documents("overlay production") if "monitoring" in d["apiVersion"]]
    with prometheus.running(node) as running:
        service.apply(*resources)
        service.wait_until(lambda: configured(running))
        yield running
    for document in resources:
        service.kubectl("delete", document["kind"], document["metadata"]["name"])


def configured(running: Prometheus) -> bool:
    """Whether both pods are scraped."""
    return running.follow() and len(running.query('up{job="model-server"} == 1')) >= 2


def scaled_object() -> Document:
    """production's, unchanged but for the address of Prometheus."""
    (found,) = [d for d in documents("overlay production") if d["kind"] == "ScaledObject"]
    (trigger,) = found["spec"]["triggers"]
    trigger["metadata"]["serverAddress"] = prometheus.URL
    return found


class Watch(Background):
    """Looks at replicas and at the scaler's measure each second, inside a `with` block.

    Attributes:
        seen: seconds since it began, replicas wanted and ready, and the measure if there was one.
    """

    def __init__(self, cluster: Cluster, running: Prometheus) -> None:
        self._cluster, self._prometheus = cluster, running
        (trigger,) = scaled_object()["spec"]["triggers"]
        self._query = " ".join(trigger["metadata"]["query"].split())
        super().__init__()
        self.seen: list[tuple[float, int, int, float | None]] = []

    def _run(self) -> None:
        while not self._over.wait(1):
            deployment = self._cluster.get(DEPLOYMENT)
            measure = None
            with contextlib.suppress(ProgramError):
                found = self._prometheus.query(self._query)
                measure = float(found[0]["value"][1]) if found else None
            ready = deployment["status"].get("readyReplicas", 0)
            row = (time.time(), deployment["spec"]["replicas"], ready, measure)
            self.seen.append(row)

    def first(self, wanted: int, since: float) -> float:
        """When so many replicas were first wanted."""
        return next(t for t, replicas, _, _ in self.seen if t >= since and replicas >= wanted)


def scalers(overlay: str) -> list[Document]:
    kinds = ("ScaledObject", "HorizontalPodAutoscaler")
    return [d for d in documents(f"overlay {overlay}") if d["kind"] in kinds]


@pytest.fixture(scope="module")
def scaling(node: Node | None, cluster: Cluster) -> Iterator[Cluster]:
    """A cluster with KEDA; what it scales must be gone before it is."""
    if node is None:
        pytest.skip("needs KEDA and Prometheus of its own: shown on the tests' own node")
    define_custom_resources(node)
    with keda.running(node):
        yield cluster


@pytest.fixture
def scaled(served: Cluster, monitored: Prometheus, scaling: Cluster) -> Iterator[Cluster]:
    """The service with the ScaledObject, at its minimum of three."""
    assert monitored
    served.kubectl("set", "env", DEPLOYMENT, PATIENCE)
    served.wait_until_rolled_out()
    served.apply(scaled_object())
    served.wait_until(lambda: served.get(DEPLOYMENT)["status"].get("readyReplicas") == 3)
    yield served
    remove_scalers(scaling)


@pytest.mark.skipif(not LONG, reason="takes minutes: RELIABILITY=long")
def test_load_scales_up_and_calm_down(
    scaled: Cluster,
    client: Client,
    monitored: Prometheus,
    cluster_figures: dict[str, Any],
) -> None:
    begun = {pod["metadata"]["name"] for pod in scaled.pods()}
    with Watch(scaled, monitored) as watch:
        with client.load(**CALM) as calm, client.load(**DEAR) as load:
            step = time.time()
            scaled.wait_until(lambda: scaled.get(DEPLOYMENT)["spec"]["replicas"] > 3, 300)
            new = scaled.wait_until(
                lambda: [p for p in ready(scaled.pods()) if p["metadata"]["name"] not in begun]
            )[0]
            peak = scaled.get(DEPLOYMENT)["spec"]["replicas"]
            printed = scaled.kubectl(*arguments(" hpa", POD="", NODE="", N="")).stdout
            assert "Deployment/model-server" in printed
            with monitored.stopped():
                # The fallback stands after four failures, 15 s apart.
                blind = time.time()
                time.sleep(90)
            sighted = time.time()
            scaled.wait_until(lambda: monitored.query('up{job="model-server"} == 1'))
        with client.load(**CALM) as after:
            top = scaled.get(DEPLOYMENT)["spec"]["replicas"]
            scaled.wait_until(lambda: scaled.get(DEPLOYMENT)["spec"]["replicas"] < top, 900)
            scaled.wait_until(
                lambda: len(scaled.get("pods", f"--selector={SERVER}")["items"]) < top
            )
    assert min(r for t, r, _, _ in watch.seen if blind < t < sighted) >= peak
    for name, sent in (("calm", calm), ("dear", load), ("after", after)):
        cluster_figures[f"scaler_{name}"] = sent.figures
    cluster_figures["scaler_seconds"] = split(watch, step, new)
    draw(watch, step, load, calm, after)
    for sent in (calm, load, after):
        assert sent.problems == {}


def ready(pods: list[Document]) -> list[Document]:
    return [pod for pod in pods if condition(pod, "Ready")]


def condition(pod: Document, kind: str) -> float:
    """Since when a pod's condition is true, or 0."""
    found = [c for c in pod["status"].get("conditions", []) if c["type"] == kind]
    return moment(found[0]["lastTransitionTime"]) if found and found[0]["status"] == "True" else 0.0


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def split(watch: Watch, step: float, pod: Document) -> dict[str, float]:
    """The seconds from the step of load to the first new pod that serves, in parts."""
    (threshold,) = (float(t["metadata"]["threshold"]) for t in scaled_object()["spec"]["triggers"])
    # A tenth is the autoscaler's tolerance.
    enough = 3 * threshold * 1.1
    measured = next(t for t, _, _, measure in watch.seen if t > step and (measure or 0) > enough)
    wanted = watch.first(4, step)
    (status,) = pod["status"]["containerStatuses"]
    started = moment(status["state"]["running"]["startedAt"])
    return {
        "until measured": round(measured - step, 1),
        "until wanted": round(wanted - measured, 1),
        "until the container ran": round(started - wanted, 1),
        "until ready": round(condition(pod, "Ready") - started, 1),
        "whole": round(condition(pod, "Ready") - step, 1),
    }


def draw(watch: Watch, step: float, load: Any, *calm: Any) -> None:
    """Plot replicas and the scaler's measure, and latencies and refusals, over time."""
    sizes = {"256 images": load.requests, "1 image": [r for each in calm for r in each.requests]}

    def plot(axes: Any) -> None:
        pods, latency = axes
        times = [t - step for t, *_ in watch.seen]
        pods.step(times, [row[1] for row in watch.seen], where="post", label="replicas wanted")
        pods.step(times, [row[2] for row in watch.seen], where="post", label="replicas ready")
        measures = [float("nan") if row[3] is None else row[3] for row in watch.seen]
        pods.plot(times, measures, label="busy pods, as the scaler sees them")
        pods.set(ylabel="pods", ylim=(0, None))
        for label, requests in sizes.items():
            slowest: dict[int, float] = {}
            for t, seconds, status in requests:
                if status == HTTPStatus.OK:
                    five = int(t - step) // 5 * 5
                    slowest[five] = max(slowest.get(five, 0.0), 1e3 * seconds)
            latency.plot(
                *zip(*sorted(slowest.items()), strict=True), label=f"{label}, slowest of 5 s"
            )
        refused = [
            (t - step, 1e3 * seconds) for t, seconds, s in load.requests if s != HTTPStatus.OK
        ]
        if refused:
            latency.plot(*zip(*refused, strict=True), "x", label="refused")
        latency.set(ylabel="ms", yscale="log")
        charts.plain_numbers(latency.yaxis)
        for axis in axes:
            axis.set(xlabel="seconds from the step of load")
            axis.grid(alpha=0.3)
            axis.legend(fontsize="small")

    place = ROOT / "artifacts" / "cluster"
    place.mkdir(parents=True, exist_ok=True)
    (place / "scaling.svg").write_text(charts.svg(plot))


@pytest.mark.parametrize("pair", [*permutations(("production", "gpu", "cpu"), 2)], ids="-".join)
def test_the_scaler_of_another_overlay_is_taken_over(
    pair: tuple[str, str], served: Cluster, scaling: Cluster
) -> None:
    """KEDA's webhook refuses a second scaler of a Deployment, but for one that is handed over."""
    one, other = (scalers(name) for name in pair)
    try:
        served.apply(*one)
        served.wait_until(lambda: served.get("horizontalpodautoscalers")["items"])
        served.apply(*other)
        # What an apply with --prune does next, and then the second apply that the README asks for.
        for kind in {d["kind"] for d in one} - {d["kind"] for d in other}:
            served.kubectl("delete", kind, "model-server")
        served.apply(*other)
        (wanted,) = other
        most = wanted["spec"].get("maxReplicas") or wanted["spec"]["maxReplicaCount"]
        scaling.wait_until(lambda: maximum(served) == [most])
    finally:
        remove_scalers(scaling)


def remove_scalers(cluster: Cluster) -> None:
    """Leave the replicas to whoever applies next."""
    for kind in ("scaledobject", "horizontalpodautoscaler"):
        cluster.kubectl("delete", kind, "model-server", "--ignore-not-found")
    cluster.wait_until(lambda: not maximum(cluster))


def maximum(cluster: Cluster) -> list[int]:
    """The most replicas that each autoscaler may make."""
    found = cluster.get("horizontalpodautoscalers")["items"]
    return [scaler["spec"]["maxReplicas"] for scaler in found]
