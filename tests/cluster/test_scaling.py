"""The scaler of overlay `cpu` on a cluster with metrics-server, and how it takes over."""

import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.manifests import KUBERNETES
from tests.cluster import metrics_server
from tests.cluster.clients import Client
from tests.cluster.cluster import DEPLOYMENT, SERVER, Cluster, documents, for_a_small_node
from tests.cluster.node import Node
from tests.reliability.record import LONG

METRICS = "/apis/metrics.k8s.io/v1beta1"
SCALER = "horizontalpodautoscaler/model-server"


@pytest.fixture
def metrics(node: Node | None, cluster: Cluster) -> Iterator[Cluster]:
    """A cluster with a metrics-server that knows the pods."""
    with contextlib.ExitStack() as stack:
        if node:
            stack.enter_context(metrics_server.running(node))
        elif cluster.kubectl("get", f"--raw={METRICS}", check=False).returncode:
            pytest.skip("the cluster has no metrics-server")
        yield cluster


def replicas(cluster: Cluster) -> int:
    return int(cluster.get(DEPLOYMENT)["spec"]["replicas"])


def measured(cluster: Cluster) -> set[str]:
    """The pods whose CPU and memory are known."""
    command = ("top", "pods", f"--selector={SERVER}", "--no-headers")
    done = cluster.kubectl(*command, check=False)
    return {line.split()[0] for line in done.stdout.splitlines()} if not done.returncode else set()


def test_a_number_that_an_overlay_no_longer_has_stays(
    served: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the README's command, or else an apply would set the default, which is one."""
    text = (KUBERNETES / "components" / "autoscale-cpu" / "README.md").read_text()
    ((setting, command),) = re.findall(
        r"^    (KUBE_EDITOR=.*) \\\n +kubectl (.*)$", text, re.MULTILINE
    )
    name, _, editor = setting.partition("=")
    monkeypatch.setenv(name, *shlex.split(editor))
    (deployment,) = [d for d in for_a_small_node("overlay local") if d["kind"] == "Deployment"]
    del deployment["spec"]["replicas"]
    trial = ("apply", "--dry-run=server", "--output=jsonpath={.spec.replicas}", "-f", "-")
    assert served.kubectl(*trial, text=json.dumps(deployment)).stdout == "1"
    served.kubectl(*shlex.split(command))
    served.apply(deployment)
    assert replicas(served) == 2


def test_the_scaler_reads_the_pods_cpu(served: Cluster, metrics: Cluster) -> None:
    """From metrics-server, of the service's container alone."""
    pods = {pod["metadata"]["name"] for pod in served.pods()}
    metrics.wait_until(lambda: pods <= measured(served))
    (scaler,) = [d for d in documents("overlay cpu") if d["kind"] == "HorizontalPodAutoscaler"]
    # As many as there are: what load does is another matter.
    scaler["spec"]["maxReplicas"] = scaler["spec"]["minReplicas"]
    try:
        served.apply(scaler)
        (metric,) = served.wait_until(lambda: served.get(SCALER)["status"].get("currentMetrics"))
        assert metric["containerResource"]["container"] == "model-server"
        assert metric["containerResource"]["current"]["averageUtilization"] >= 0
        conditions = {c["type"]: c["status"] for c in served.get(SCALER)["status"]["conditions"]}
        assert conditions["AbleToScale"] == conditions["ScalingActive"] == "True"
    finally:
        served.kubectl("delete", SCALER)


@pytest.mark.skipif(not LONG, reason="takes minutes: RELIABILITY=long")
def test_load_scales_up_and_calm_down(
    served: Cluster, metrics: Cluster, client: Client, cluster_figures: dict[str, Any]
) -> None:
    """Under requests that each need some milliseconds of CPU; none of them is lost."""
    (scaler,) = [d for d in documents("overlay cpu") if d["kind"] == "HorizontalPodAutoscaler"]
    # There are two cores, which both are busy.
    scaler["spec"]["maxReplicas"] = 3
    # With the CPU that overlay `local` asks for.
    served.apply(*documents("overlay local"))
    served.wait_until_rolled_out()
    pods = {pod["metadata"]["name"] for pod in served.pods()}
    metrics.wait_until(lambda: pods <= measured(served))
    served.apply(scaler)
    calm: dict[str, Any] = {"idle": 0.1}
    try:
        dear = client.load(users=4, keep_alive=False, idle=0.02, instances=128)
        with client.load(**calm) as cheap, dear:
            served.wait_until(lambda: served.get(DEPLOYMENT)["status"].get("readyReplicas") == 3)
        with client.load(**calm) as after:
            served.wait_until(lambda: replicas(served) == 2, 900)
            served.wait_until_rolled_out()
    finally:
        served.kubectl("delete", SCALER)
    for name, load in (("cheap", cheap), ("dear", dear), ("after", after)):
        cluster_figures[f"cpu_scaler_{name}"] = load.figures
        assert load.problems == {}
