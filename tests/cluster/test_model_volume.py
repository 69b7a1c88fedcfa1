"""A volume that the training Job fills, and the service then serves from."""

import time
from typing import Any

import pytest

from tests.cluster.clients import HOST, Client
from tests.cluster.cluster import TOKEN, Cluster, for_a_small_node
from tests.cluster.conftest import load_image
from tests.cluster.node import Node
from tests.deploy.resources import Document

XOR = """
import sys, urllib.request
url, token = sys.argv[1:]
body = b'{"instances": [[0, 1], [1, 1]]}'
request = urllib.request.Request(url, body, {"Authorization": f"Bearer {token}"})
print(urllib.request.urlopen(request, timeout=5).read().decode())
"""


@pytest.fixture(scope="module")
def claim(node: Node | None, images: dict[str, str]) -> Document:
    """A volume without a driver, of the size that the component's claim asks for."""
    if node is None:
        pytest.skip("the claim needs a volume: shown on the tests' own node")
    load_image(node, images["training"], "docker.io/library/model-server-training:0.1.0")
    place = node.directory / "archives"
    place.mkdir()
    # A driver would give it to the group of the pod.
    place.chmod(0o777)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "archives"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany"],
            "hostPath": {"path": str(place), "type": "Directory"},
        },
    }


def test_what_the_job_trained_is_served(
    claim: Document, served: Cluster, client: Client, cluster_figures: dict[str, Any]
) -> None:
    """Of the models one that is trained in seconds."""
    training = for_a_small_node("component training")
    (job,) = [document for document in training if document["kind"] == "Job"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    *shell, script = container["command"]
    assert "training train\n" in script
    script = script.replace("training train", "training train xor")
    container["command"] = [*shell, script.replace("training pack", "training pack xor")]
    started = time.monotonic()
    kinds = ("Job", "PersistentVolumeClaim", "ServiceAccount")
    served.apply(claim, *(d for d in training if d["kind"] in kinds))
    try:
        served.kubectl("wait", "--for=condition=Complete", "job/training", "--timeout=300s")
        cluster_figures["training_job_seconds"] = round(time.monotonic() - started, 1)
        changed = for_a_small_node("component model-volume")
        served.apply(*(document for document in changed if document["kind"] == "Deployment"))
        served.wait_until_rolled_out()
        for pod in served.pods():
            volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
            assert volumes["archives"]["persistentVolumeClaim"]["claimName"] == "model-archives"
        answer = client.python(XOR, f"http://{HOST}:8080/predictions/xor", TOKEN).stdout
        assert '"label": 1' in answer
        assert '"label": 0' in answer
    finally:
        served.kubectl("delete", "job", "training")
