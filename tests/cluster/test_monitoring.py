"""The project's rules in a Prometheus that the operator configures: alerts fire, and end.

An alert's windows are minutes to days. Here every duration of rules and scrapes is divided by
`FASTER`, so that minutes are seconds; thresholds, series and expressions are the project's. What
takes longest is for `RELIABILITY=long make test-cluster`.
"""

import json
import re
import shlex
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster import prometheus
from tests.cluster.clients import Client
from tests.cluster.cluster import (
    DEPLOYMENT,
    Cluster,
    define_custom_resources,
    documents,
    for_a_small_node,
    restarts,
)
from tests.cluster.node import Node
from tests.cluster.prometheus import Prometheus
from tests.cluster.test_kills import KILL
from tests.deploy.resources import Document
from tests.deploy.runbook import looks
from tests.reliability.record import LONG

FASTER = 30
AT_LENGTH = pytest.mark.skipif(not LONG, reason="takes minutes: RELIABILITY=long")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# A signal for every process whose command line has a text.
SIGNAL = """
import os, pathlib, sys
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    process = int(path.parent.name)
    if sys.argv[1] in path.read_bytes().decode() and process != os.getpid():
        os.kill(process, int(sys.argv[2]))
"""
# Takes nine tenths of the container's memory and something, with what is in it, until it is killed.
FILL = """
import pathlib, time, sys
root = pathlib.Path("/sys/fs/cgroup/memory")
names = ("usage_in_bytes", "limit_in_bytes") if root.is_dir() else ("current", "max")
root = root if root.is_dir() else root.parent
usage, limit = (int((root / f"memory.{name}").read_text()) for name in names)
stat = (root / "memory.stat").read_text().split()
name = "total_inactive_file" if "total_inactive_file" in stat else "inactive_file"
usage -= int(stat[stat.index(name) + 1])
open("/proc/self/oom_score_adj", "w").write("1000")
taken = b"x" * int(0.94 * limit - usage)
print("taken", flush=True)
time.sleep(600)
"""


def faster(text: str) -> str:
    """Durations divided by `FASTER`, but none below a second."""

    def replaced(match: re.Match[str]) -> str:
        before, number, unit = match.groups()
        return f"{before}{max(1, int(number) * SECONDS[unit] // FASTER)}s"

    return re.sub(r"(\[|offset |for: |interval: |scrapeTimeout: )(\d+)([smhd])\b", replaced, text)


@pytest.fixture(scope="module")
def alerting(node: Node | None, service: Cluster) -> Iterator[Prometheus]:
    """A Prometheus with production's ServiceMonitor and rules."""
    if node is None:
        pytest.skip("needs a Prometheus of its own: shown on the tests' own node")
    define_custom_resources(node)
    resources = [d for d in documents("overlay production") if "monitoring" in d["apiVersion"]]
    with prometheus.running(node, interval="2s") as running:
        # As they are, they load.
        service.apply(*resources)
        wanted = sum(
            len(group["rules"])
            for document in resources
            if document["kind"] == "PrometheusRule"
            for group in document["spec"]["groups"]
        )
        service.wait_until(lambda: len(loaded(running)) == wanted)
        service.apply(*map(hastened, resources))
        service.wait_until(lambda: any("[10s]" in rule["query"] for rule in loaded(running)))
        service.wait_until(lambda: {rule["health"] for rule in loaded(running)} == {"ok"})
        service.wait_until(lambda: len(running.query('up{job="model-server"} == 1')) == 2)
        yield running
    for document in resources:
        service.kubectl("delete", document["kind"], document["metadata"]["name"])


def hastened(document: Document) -> Document:
    """A monitor or rules with shorter durations."""
    changed: Document = json.loads(json.dumps(document))
    if document["kind"] == "ServiceMonitor":
        changed["spec"]["endpoints"][0] |= {"interval": "1s", "scrapeTimeout": "1s"}
        return changed
    for group in changed["spec"]["groups"]:
        for holder in (group, *group["rules"]):
            for key in ("interval", "for", "expr"):
                if key in holder:
                    prefix = "" if key == "expr" else f"{key}: "
                    holder[key] = faster(f"{prefix}{holder[key]}").removeprefix(prefix)
    return changed


def loaded(running: Prometheus) -> list[dict[str, Any]]:
    """The rules that Prometheus has."""
    if not running.follow():
        return []
    return [rule for group in running.get("rules")["groups"] for rule in group["rules"]]


def firing(running: Prometheus, name: str, **labels: str) -> list[dict[str, str]]:
    """The labels of the alerts that fire and have these labels."""
    wanted = {"alertname": name} | labels
    return [
        found["labels"]
        for found in running.get("alerts")["alerts"]
        if found["labels"].items() >= wanted.items() and found["state"] == "firing"
    ]


@pytest.fixture
def alert(
    served: Cluster, alerting: Prometheus, cluster_figures: dict[str, Any]
) -> Callable[..., str]:
    """A function that waits until an alert fires, or until it no longer does.

    While it fires, the runbook's commands are run that look at what it tells of; the function
    returns what they print.
    """
    times: dict[str, float] = {}
    figures: dict[str, dict[str, float]] = cluster_figures.setdefault("alerts", {})

    def wait(name: str, *, fires: bool, **labels: str) -> str:
        def state() -> Any:
            found = firing(alerting, name, **labels)
            return found if fires else not found

        times.setdefault(name, time.monotonic())
        reached = served.wait_until(state, 300)
        key = "fired after" if fires else "ended after"
        figures.setdefault(name, {})[key] = round(time.monotonic() - times[name], 1)
        times[name] = time.monotonic()
        if not fires:
            return ""
        found = looks(name, POD=reached[0].get("pod", ""), NODE="", N="")
        return "".join(served.kubectl(*shlex.split(command)[1:]).stdout for command in found)

    return wait


def test_workers_that_die(served: Cluster, alerting: Prometheus, alert: Callable[..., str]) -> None:
    """Again and again, on one of two pods."""
    name = served.pods()[0]["metadata"]["name"]
    kill = ("exec", name, "--", "python", "-c", KILL, "model_service_worker")
    for _ in range(12):
        served.kubectl(*kill, check=False)
        time.sleep(2)
    alert("ModelServerWorkerRestarts", fires=True, pod=name, severity="ticket")
    alert("ModelServerWorkerRestarts", fires=False)
    # The next worker may load while no restart is within the rule's 10 s any more.
    ready = 'min(serving_model_ready{job="model-server"}) == 1'
    served.wait_until(lambda: alerting.query(ready))


def test_requests_that_fail(served: Cluster, client: Client, alert: Callable[..., str]) -> None:
    """As the workers of a model stand still, on both pods."""
    pods = [pod["metadata"]["name"] for pod in served.pods()]

    def signal(number: int) -> None:
        for pod in pods:
            code = ("python", "-c", SIGNAL, "model_service_worker", str(number))
            served.kubectl("exec", pod, "--", *code)

    with client.load(users=16, keep_alive=False) as load:
        # A page needs 100 requests.
        time.sleep(2)
        signal(19)
        alert("ModelServerFailuresBurnBudget", fires=True, severity="page", window="1h")
        signal(18)
        alert("ModelServerFailuresBurnBudget", fires=False, severity="page", window="1h")
    assert any(problem.startswith(("503 ", "504 ")) for problem in load.problems)


@AT_LENGTH
def test_a_container_that_is_started_again(
    served: Cluster, node: Node, alert: Callable[..., str]
) -> None:
    """Twice; its new process is what tells."""
    name = served.pods()[0]["metadata"]["name"]
    for _ in range(2):
        pod = served.get("pod", name)
        (status,) = pod["status"]["containerStatuses"]
        node.containerd.kill(status["containerID"].rpartition("/")[2])
        served.wait_until(lambda pod=pod: restarts(served.get("pod", name)) > restarts(pod))  # type: ignore[misc]
        served.wait_until_rolled_out()
    printed = alert("ModelServerRestarts", fires=True, pod=name)
    assert re.search(rf"^{name} +2 +Error +137$", printed, re.MULTILINE)
    assert f"Name: {name}" in re.sub(" +", " ", printed)
    alert("ModelServerRestarts", fires=False)


@AT_LENGTH
def test_memory_that_runs_out(served: Cluster, alert: Callable[..., str]) -> None:
    name = served.pods()[0]["metadata"]["name"]
    filling = served.start("exec", "-i", name, "--", "python", "-c", FILL)
    try:
        assert filling.stdout
        assert filling.stdout.readline() == "taken\n"
        alert("ModelServerMemoryHigh", fires=True, pod=name)
        served.kubectl("exec", name, "--", "python", "-c", SIGNAL, "oom_score_adj", "9")
        alert("ModelServerMemoryHigh", fires=False)
    finally:
        filling.kill()
        filling.communicate()


def test_a_canary_without_its_gpu(
    served: Cluster, alerting: Prometheus, alert: Callable[..., str]
) -> None:
    """It is not ready and says why; as it is a canary, nobody is woken."""
    changed = for_a_small_node("component httproute-canary")
    canary = [d for d in changed if d["metadata"]["name"].startswith("model-server-canary")]
    for document in canary:
        if document["kind"] == "Deployment":
            (container,) = document["spec"]["template"]["spec"]["containers"]
            container["env"].append({"name": "REQUIRE_GPU", "value": "true"})
            container["image"] = "model-server:0.1.0"
    names = [f"{d['kind']}/{d['metadata']['name']}" for d in canary]
    served.apply(*canary)
    try:
        labels = {"job": "model-server-canary", "severity": "ticket"}
        printed = alert("ModelServerGpuMissing", fires=True, **labels)
        assert "model-server-canary-" in printed
        assert re.search(r"^\S+ +<none>$", printed, re.MULTILINE)
        alert("ModelServerModelNotReady", fires=True, **labels)
        assert not firing(alerting, "ModelServerModelUnavailable")
    finally:
        served.kubectl("delete", *names)
    alert("ModelServerModelNotReady", fires=False)
    alert("ModelServerGpuMissing", fires=False)


@AT_LENGTH
def test_no_server_at_all(served: Cluster, alert: Callable[..., str]) -> None:
    served.kubectl("scale", DEPLOYMENT, "--replicas=0")
    try:
        alert("ModelServerAbsent", fires=True, severity="page")
    finally:
        served.kubectl("scale", DEPLOYMENT, "--replicas=2")
    alert("ModelServerAbsent", fires=False)
