"""Pods end under load, as users, controllers and administrators end them: no request is lost."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster.clients import Client
from tests.cluster.cluster import DEPLOYMENT, NAMESPACE, SERVER, Cluster, Exits
from tests.reliability.record import LONG

Under = Callable[[str], contextlib.AbstractContextManager[None]]


@pytest.fixture
def under_load(served: Cluster, client: Client, cluster_figures: dict[str, Any]) -> Under:
    """A context manager in which requests are sent, over kept connections and new ones.

    At its end none was lost, and every container that ended has exit code 0.
    """

    @contextlib.contextmanager
    def sending(name: str) -> Iterator[None]:
        kept, single = client.load(), client.load(keep_alive=False)
        with Exits(served) as exits, kept, single:
            yield
        for load, kind in ((kept, "kept"), (single, "single")):
            cluster_figures[f"{name}_{kind}"] = load.figures
            assert load.problems == {}
            assert load.sent > 100
        assert exits.codes
        assert set(exits.codes.values()) == {0}, exits.codes

    return sending


def evict(cluster: Cluster, pod: str) -> str:
    """Ask for an eviction; what kubectl prints."""
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": NAMESPACE},
    }
    place = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
    command = ("create", "--raw", place, "-f", "-", "-v=6")
    return cluster.kubectl(*command, text=json.dumps(eviction), check=False).stdout


def all_gone(cluster: Cluster, names: set[str]) -> bool:
    found = cluster.get("pods", f"--selector={SERVER}")["items"]
    return not names & {pod["metadata"]["name"] for pod in found}


def names(cluster: Cluster) -> set[str]:
    return {pod["metadata"]["name"] for pod in cluster.pods()}


def test_rollout(served: Cluster, under_load: Under) -> None:
    before = names(served)
    with under_load("rollout"):
        served.kubectl("rollout", "restart", DEPLOYMENT)
        served.wait_until_rolled_out()
    assert not before & names(served)


def test_scale_down(served: Cluster, under_load: Under) -> None:
    with under_load("scale_down"):
        served.kubectl("scale", DEPLOYMENT, "--replicas=1")
        served.wait_until_rolled_out()
    assert len(names(served)) == 1


def test_evictions(served: Cluster, under_load: Under) -> None:
    """The second must wait until the budget allows it."""
    first, second = sorted(names(served))
    with under_load("eviction"):
        assert "201 Created" in evict(served, first)
        refused = evict(served, second)
        assert "429 Too Many Requests" in refused
        assert "disruption budget" in refused
        served.wait_until(lambda: all_gone(served, {first}))
        served.wait_until_rolled_out()
    assert second in names(served)


def test_drain_of_the_node(served: Cluster, under_load: Under) -> None:
    """It waits where no other node has room, and ends when one has."""
    before = names(served)
    node = served.pods()[0]["spec"]["nodeName"]
    nodes = {pod["spec"]["nodeName"] for pod in served.pods()}
    if len(nodes) > 1:
        pytest.skip("the pods are on two nodes: a drain of one does not wait")
    with under_load("drain"):
        drain = served.start(
            "drain", node, f"--pod-selector={SERVER}", "--delete-emptydir-data", "--timeout=300s"
        )
        try:
            assert drain.stdout
            seen: list[str] = []
            while "disruption budget" not in (seen or [""])[-1]:
                seen.append(drain.stdout.readline())
                assert seen[-1], seen
            served.kubectl("uncordon", node)
            printed, _ = drain.communicate(timeout=300)
            assert drain.returncode == 0, printed
        finally:
            drain.kill()
            served.kubectl("uncordon", node)
        served.wait_until_rolled_out()
    assert not before & names(served)


@pytest.mark.skipif(not LONG, reason="takes minutes: RELIABILITY=long")
def test_a_thousand_requests_a_second(
    served: Cluster, client: Client, cluster_figures: dict[str, Any]
) -> None:
    """Through the Service and one pod, over connections that are kept: all are answered."""
    served.kubectl("set", "env", DEPLOYMENT, "RATE_LIMIT=0")
    served.kubectl("scale", DEPLOYMENT, "--replicas=1")
    served.wait_until_rolled_out()
    rate, seconds = 1000, 180
    with client.load(rate=rate, users=32) as load:
        time.sleep(seconds)
    cluster_figures["thousand"] = load.figures
    assert load.problems == {}
    assert load.sent > 0.9 * rate * seconds
