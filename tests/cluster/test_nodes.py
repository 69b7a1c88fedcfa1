"""What nodes claim to have: a GPU that is not there, and zones whose nodes are dead."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.clients import Client
from tests.cluster.cluster import DEPLOYMENT, Cluster, for_a_small_node
from tests.cluster.node import NAME, Node
from tests.deploy.resources import Document

READY = """
import urllib.error, urllib.request
try:
    urllib.request.urlopen("http://127.0.0.1:8083/readyz")
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""
ZONE = "topology.kubernetes.io/zone"


@pytest.fixture(autouse=True)
def own_node(node: Node | None) -> None:
    if node is None:
        pytest.skip("these tests change nodes: shown on the tests' own")


def claim(cluster: Cluster, gpus: int | None) -> None:
    """Have the node say that it has so many GPUs."""
    value = str(gpus) if gpus else None
    status = {kind: {"nvidia.com/gpu": value} for kind in ("capacity", "allocatable")}
    patch = json.dumps({"status": status})
    cluster.kubectl("patch", "node", NAME, "--subresource=status", "--type=merge", "-p", patch)


def test_a_gpu_that_is_not_there(served: Cluster, client: Client) -> None:
    """The pod is scheduled and runs, is not ready, and says why; the other one serves on."""
    changed = for_a_small_node("component gpu")
    (deployment,) = [document for document in changed if document["kind"] == "Deployment"]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    # What it would need of a machine that has one.
    container["resources"]["requests"]["memory"] = container["resources"]["limits"]["memory"] = (
        "2Gi"
    )
    old = {pod["metadata"]["name"] for pod in served.pods()}

    def reason() -> str:
        """What a new pod's readiness says, once nothing but the GPU is missing."""
        for pod in served.pods():
            name = pod["metadata"]["name"]
            if name not in old and pod["status"]["phase"] == "Running":
                said = served.kubectl("exec", name, "--", "python", "-c", READY, check=False)
                return said.stdout if "REQUIRE_GPU" in said.stdout else ""
        return ""

    claim(served, 1)
    try:
        served.apply(deployment)
        answer = served.wait_until(reason)
        assert answer.startswith("503 ")
        assert "a GPU is required (REQUIRE_GPU), and it computes on the CPU" in answer
        ready = served.get(DEPLOYMENT)["status"]
        # No spare one is asked for, so one of two is missing meanwhile.
        assert ready["readyReplicas"] == 1
        with client.load() as load:
            client.python("import time; time.sleep(3)")
        assert load.problems == {}
    finally:
        claim(served, None)
        served.kubectl("rollout", "undo", DEPLOYMENT, check=False)


@pytest.fixture
def zones(service: Cluster) -> Iterator[None]:
    """The node in a zone, and two dead nodes in zones of their own."""
    dead = [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": f"dead-{zone}", "labels": {ZONE: zone}},
        }
        for zone in ("b", "c")
    ]
    service.kubectl("label", "node", NAME, f"{ZONE}=a")
    service.apply(*dead)
    yield
    service.kubectl("delete", "node", "dead-b", "dead-c")
    service.kubectl("label", "node", NAME, f"{ZONE}-")


@pytest.mark.parametrize("unsatisfiable", ["ScheduleAnyway", "DoNotSchedule"])
@pytest.mark.usefixtures("zones")
def test_a_dead_zone(unsatisfiable: str, service: Cluster) -> None:
    """It blocks nothing, as it would where zones had to be level."""
    replicas = 3
    (deployment,) = [d for d in for_a_small_node("base") if d["kind"] == "Deployment"]
    text = json.dumps(deployment).replace('"stable"', '"zones"')
    deployment = json.loads(text.replace('"ScheduleAnyway"', f'"{unsatisfiable}"'))
    deployment["metadata"]["name"] = "zones"
    deployment["spec"] |= {"replicas": replicas, "minReadySeconds": 0}
    spec = deployment["spec"]["template"]["spec"]
    spec["terminationGracePeriodSeconds"] = 0
    (container,) = spec["containers"]
    # Where its pods are is the question, not what they do.
    container["command"] = ["sleep", "infinity"]
    for unneeded in ("args", "startupProbe", "readinessProbe", "livenessProbe"):
        del container[unneeded]
    service.apply(deployment)

    def scheduled() -> list[Document]:
        pods = service.pods("app.kubernetes.io/instance=zones")
        conditions: list[dict[str, Any]] = [
            condition
            for pod in pods
            for condition in pod["status"].get("conditions", [])
            if condition["type"] == "PodScheduled"
        ]
        return conditions if len(conditions) == replicas else []

    try:
        conditions = service.wait_until(scheduled)
        waiting = [c["message"] for c in conditions if c["status"] == "False"]
        if unsatisfiable == "ScheduleAnyway":
            assert waiting == []
        else:
            assert len(waiting) == replicas - 1
            assert all("topology spread" in message for message in waiting)
    finally:
        service.kubectl("delete", "deployment", "zones")
        service.wait_until(lambda: not service.pods("app.kubernetes.io/instance=zones"))
