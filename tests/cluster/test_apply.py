"""Every rendering on a real API server: no warning, and no change by a second apply."""

import json
import re
from collections.abc import Iterator

import pytest
import yaml

from deploy.manifests import KUBERNETES
from tests.cluster.cluster import (
    NAMESPACE,
    Cluster,
    define_custom_resources,
    documents,
    token_secret,
)
from tests.cluster.node import Node
from tests.deploy.programs import unavailable
from tests.deploy.resources import RENDERINGS, Document, elsewhere
from tests.deploy.runbook import guide

ROOT_POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "root"},
    "spec": {"containers": [{"name": "root", "image": "model-server:0.1.0"}]},
}


@pytest.fixture(scope="module")
def api(cluster: Cluster, node: Node | None) -> Iterator[Cluster]:
    """A cluster with the custom resources' definitions, where no pod starts."""
    if node:
        define_custom_resources(node)
    nodes = [item["metadata"]["name"] for item in cluster.get("nodes")["items"]]
    cluster.kubectl("cordon", *nodes)
    yield cluster
    cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")
    cluster.kubectl("uncordon", *nodes)


def make_namespace(cluster: Cluster) -> None:
    """Make the namespace by the guide's command."""
    making = re.compile("kubectl (create namespace model-serving|apply -f .*/namespace.yaml)$")
    (command,) = filter(making.match, guide())
    cluster.kubectl(*command.split()[1:], namespace="")


@pytest.fixture(scope="module")
def namespace(api: Cluster) -> Cluster:
    """The cluster with the namespace, made as the guide makes it."""
    make_namespace(api)
    api.apply(token_secret())
    return api


def serves(cluster: Cluster, rendering: list[Document]) -> None:
    """Skip a rendering with kinds whose definitions the cluster lacks."""
    served = cluster.kubectl("api-resources", "--no-headers").stdout.split()
    if unknown := {document["kind"] for document in rendering} - set(served):
        unavailable(f"the cluster has no definition of {', '.join(sorted(unknown))}")


def stored(cluster: Cluster, text: str) -> list[Document]:
    """The documents as the API server has them, without what only controllers write."""
    done = cluster.kubectl("get", "-f", "-", "--output=json", text=text, namespace="")
    found = json.loads(done.stdout)
    kept = found["items"] if found["kind"] == "List" else [found]
    for document in kept:
        document.pop("status", None)
        for field in ("annotations", "generation", "managedFields", "resourceVersion"):
            document["metadata"].pop(field, None)
        if document["kind"] == "Deployment":
            # A scaler's, which another rendering may have left.
            document["spec"].pop("replicas")
    return list(kept)


def apply_twice(cluster: Cluster, rendering: list[Document]) -> None:
    """Apply documents without a warning, and again without a change.

    What kubectl prints the second time does not tell: it says `configured` of lists that the API
    server does not merge, and of defaults in them.
    """
    cluster.apply(*rendering)
    text = yaml.safe_dump_all(rendering)
    before = stored(cluster, text)
    assert len(before) == len(rendering)
    cluster.apply(*rendering)
    assert stored(cluster, text) == before


SEEN: set[str] = set()


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_second_apply_changes_nothing(rendering: str, namespace: Cluster) -> None:
    wanted = documents(rendering)
    serves(namespace, wanted)
    # Most documents are the same in every rendering.
    new = [document for document in wanted if json.dumps(document) not in SEEN]
    if new:
        apply_twice(namespace, new)
    SEEN.update(json.dumps(document) for document in new)


def test_pods_that_are_not_restricted_are_refused(namespace: Cluster) -> None:
    done = namespace.kubectl("apply", "-f", "-", text=json.dumps(ROOT_POD), check=False)
    assert done.returncode == 1
    assert 'violates PodSecurity "restricted:latest"' in done.stdout
    # The same in a namespace that does not ask for it.
    namespace.kubectl("apply", "-f", "-", text=json.dumps(ROOT_POD), namespace="default")
    namespace.kubectl("delete", "pod", "root", "--force", namespace="default")


def test_what_an_overlay_no_longer_has_is_pruned(
    namespace: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From `production` to `cpu`, by the guide's commands: two scalers would fight."""
    (export, *_), (command,) = (
        [line for line in guide("Change") if line.startswith(start)]
        for start in ("export KUBECTL_APPLYSET", "kubectl apply")
    )
    monkeypatch.setenv(*export.removeprefix("export ").split("=", 1))
    for overlay in ("production", "cpu"):
        serves(namespace, documents(f"overlay {overlay}"))
    # Another owner's objects are refused: the first apply of the guide is this one.
    namespace.kubectl("delete", "namespace", NAMESPACE)
    make_namespace(namespace)
    _, *arguments = command.split()

    def kinds(overlay: str) -> set[str]:
        place = str(KUBERNETES / "overlays" / overlay)
        done = namespace.kubectl(
            *[place if part == "." else part for part in arguments], namespace=""
        )
        assert "Warning" not in done.stdout, done.stdout
        scalers = ("scaledobjects.keda.sh", "horizontalpodautoscalers", "httproutes")
        found = namespace.get(",".join(scalers))["items"]
        return {item["kind"] for item in found}

    assert kinds("production") == {"ScaledObject", "HTTPRoute"}
    assert kinds("cpu") == {"HorizontalPodAutoscaler"}


def test_another_namespace_and_prefix(api: Cluster) -> None:
    rendering = list(yaml.safe_load_all(elsewhere()))
    serves(api, rendering)
    try:
        apply_twice(api, rendering)
    finally:
        api.kubectl("delete", "namespace", "team-a", "--wait=false")
