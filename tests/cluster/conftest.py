"""A cluster for all of these tests, and the service in it."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.manifests import find_program
from tests.cluster import coredns, kube_router
from tests.cluster.clients import Client
from tests.cluster.cluster import NAMESPACE, Cluster, for_a_small_node, token_secret
from tests.cluster.node import Node, missing, running
from tests.deploy.engine import podman
from tests.deploy.figures import recorded


@pytest.fixture(scope="session")
def cluster_figures(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """Measurements of the tests, written to cluster-test.json."""
    yield from recorded("cluster-test.json", request, tmp_path_factory)


@pytest.fixture(scope="session")
def node(request: pytest.FixtureRequest, cluster_figures: dict[str, Any]) -> Iterator[Node | None]:
    """A node with the images of the service; None where KUBECONFIG names a cluster."""
    if os.environ.get("KUBECONFIG"):
        yield None
        return
    if not (binaries := os.environ.get("KUBERNETES_BINARIES")):
        pytest.skip("neither KUBECONFIG nor KUBERNETES_BINARIES is set")
    if reason := missing():
        pytest.fail(reason)
    tag = request.getfixturevalue("images")["serving"]
    started = time.monotonic()
    with running(Path(binaries)) as node, coredns.running(node), kube_router.running(node):
        cluster_figures["node_seconds"] = time.monotonic() - started
        load_image(node, tag, "docker.io/library/model-server:0.1.0")
        cluster_figures["image_loaded_seconds"] = time.monotonic() - started
        yield node


def load_image(node: Node, tag: str, name: str) -> None:
    """Load an image of podman's into a node."""
    archive = node.directory / "image.tar"
    podman("save", "--format=docker-archive", f"--output={archive}", tag)
    node.containerd.load(archive)
    node.containerd.tag(tag, name)
    archive.unlink()


@pytest.fixture(scope="session")
def cluster(node: Node | None) -> Iterator[Cluster]:
    """A cluster without the service's namespace, which is removed at the end."""
    program = find_program("kubectl")
    assert program
    # In its network alone, so that a kubectl that is killed has ended.
    command = [*node.namespaces.enter("net"), *node.kubectl_command()] if node else [program]
    found = Cluster(command)
    exists = found.kubectl("get", "namespace", NAMESPACE, check=False)
    assert exists.returncode, f"namespace {NAMESPACE} exists: these tests would delete it"
    try:
        yield found
    finally:
        found.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")


@pytest.fixture(scope="session")
def service(cluster: Cluster) -> Cluster:
    """Overlay `local`, with the Secret of tokens, applied once; it may not be ready yet."""
    documents = for_a_small_node("overlay local")
    (namespace,) = [document for document in documents if document["kind"] == "Namespace"]
    cluster.apply(namespace, token_secret())
    cluster.apply(*documents)
    return cluster


@pytest.fixture(scope="session")
def client(cluster: Cluster) -> Iterator[Client]:
    """A pod in a namespace of clients."""
    with Client(cluster, namespace_labels={"model-serving/client": "true"}) as running_client:
        yield running_client


@pytest.fixture
def served(service: Cluster, client: Client) -> Iterator[Cluster]:
    """The service with both pods ready; and again as it was, whatever the test changed."""
    assert client
    yield restored(service)
    restored(service)


def restored(service: Cluster) -> Cluster:
    """Apply the service as it was, and wait until it is."""
    service.apply(*for_a_small_node("overlay local"))
    service.wait_until_rolled_out()
    assert len(service.pods()) == 2
    return service
