"""The runbook's commands, word for word, against the service."""

import json
import shlex

import pytest
import requests

from loadtest.servers import wait_until
from tests.cluster.cluster import DEPLOYMENT, Cluster
from tests.cluster.node import Node
from tests.deploy.runbook import arguments, looks
from training.registry import MODELS

# They need a container that was started again, and an autoscaler: see test_monitoring.py and
# test_scaler.py.
OTHERS = ("--previous", " hpa")


def names(service: Cluster) -> tuple[str, str]:
    """A pod of the service, and its node."""
    pod = service.pods()[0]
    return pod["metadata"]["name"], pod["spec"]["nodeName"]


def test_commands_that_look(served: Cluster) -> None:
    """All are valid, and say something of what they are to show."""
    pod, node = names(served)
    found = [
        shlex.split(command)[1:]
        for command in looks(POD=pod, NODE=node, N="3")
        if not any(other in command for other in OTHERS)
    ]
    assert len(found) > 6
    for command in found:
        printed = served.kubectl(*command).stdout
        assert any(text in printed for text in ("model-server", node)), (command, printed)


def test_readyz_through_a_forwarded_port(served: Cluster, node: Node | None) -> None:
    pod, _ = names(served)
    forwarding = served.start(*arguments("port-forward", POD=pod, NODE="", N=""))
    try:
        assert forwarding.stdout
        assert "Forwarding from 127.0.0.1:8083" in forwarding.stdout.readline()
        url = "http://127.0.0.1:8083/readyz"
        text = (
            node.namespaces.run("busybox", "wget", "-qO-", url)
            if node
            else requests.get(url, timeout=30).text
        )
        report = json.loads(text)
        assert report["status"] == "ready"
        assert report["models"].keys() == set(MODELS)
    finally:
        forwarding.kill()
        forwarding.communicate()


def test_a_cordoned_node_takes_no_further_pod(served: Cluster) -> None:
    pod, node = names(served)
    if len(served.get("nodes")["items"]) > 1:
        pytest.skip("another node would take it")
    served.kubectl(*arguments("cordon", POD=pod, NODE=node, N=""))
    try:
        served.kubectl(*arguments(" scale ", POD=pod, NODE=node, N="3"))
        waiting = "--field-selector=status.phase=Pending"
        wait_until(lambda: len(served.get("pods", waiting)["items"]) == 1)
    finally:
        served.kubectl("scale", DEPLOYMENT, "--replicas=2")
        served.wait_until(lambda: len(served.pods()) == 2)
        served.kubectl("uncordon", node)
