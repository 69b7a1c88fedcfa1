"""A pod as KServe makes it of deploy/kserve, on a node: ready, and KServe's own client is content.

KServe's controller cannot be had. What it does for a claim (`pvc://`) and a runtime is in its
documentation and small: the container of the runtime, with the folder of the claim at /mnt/models,
behind a Service named after the InferenceService.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster, restarts
from tests.cluster.node import Node
from tests.deploy.resources import Document
from tests.deploy.test_kserve import resource
from tests.integration.test_clients import PYTHON
from tests.serving import ROOT

NAMESPACE = "kserve-test"
RELEASE = "1"


def as_kserve_does(claim: str) -> list[Document]:
    """The pod and the Service of one replica, in the order of an apply."""
    runtime, service = resource("servingruntime")["spec"], resource("inferenceservice")
    predictor = service["spec"]["predictor"]
    kind, _, rest = predictor["model"]["storageUri"].partition("://")
    name, _, folder = rest.partition("/")
    assert (kind, name, folder) == ("pvc", claim, RELEASE)
    container = json.loads(json.dumps(runtime["containers"][0]))
    # The tests have two cores at most.
    container["resources"]["requests"]["cpu"] = "100m"
    container["volumeMounts"].append(
        {
            "name": "kserve-pvc-source",
            "mountPath": "/mnt/models",
            "subPath": folder,
            "readOnly": True,
        }
    )
    volume = {
        "name": "kserve-pvc-source",
        "persistentVolumeClaim": {"claimName": name, "readOnly": False},
    }
    labels = {"serving.kserve.io/inferenceservice": service["metadata"]["name"]}
    metadata = {"name": f"{service['metadata']['name']}-predictor", "namespace": NAMESPACE}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata | {"labels": labels, "annotations": runtime["annotations"]},
        "spec": {
            "terminationGracePeriodSeconds": predictor["terminationGracePeriodSeconds"],
            "automountServiceAccountToken": predictor["automountServiceAccountToken"],
            "containers": [container],
            "volumes": [*runtime["volumes"], volume],
        },
    }
    (port,) = container["ports"]
    ports = [{"name": port["name"], "port": 80, "targetPort": port["containerPort"]}]
    front = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"selector": labels, "ports": ports},
    }
    return [pod, front]


@pytest.fixture(scope="module")
def predictor(node: Node | None, cluster: Cluster, store: Path) -> Iterator[Document]:
    """The pod, ready, and with it a claim that has the archives."""
    if node is None:
        pytest.skip("the claim needs a volume: shown on the tests' own node")
    place = node.directory / "kserve" / RELEASE
    place.mkdir(parents=True)
    for file in store.glob("*.mar"):
        shutil.copy(file, place)
    modes: dict[str, Any] = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    size = {"storage": "1Gi"}
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": NAMESPACE,
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
        },
    }
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "kserve"},
        "spec": modes
        | {"capacity": size, "hostPath": {"path": str(place.parent), "type": "Directory"}},
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "model-archives", "namespace": NAMESPACE},
        "spec": modes | {"volumeName": "kserve", "resources": {"requests": size}},
    }
    cluster.apply(namespace, volume, claim, *as_kserve_does("model-archives"))
    try:
        ready = ("wait", "--for=condition=Ready", "pod/mnist-predictor", "--timeout=180s")
        cluster.kubectl(*ready, namespace=NAMESPACE)
        yield cluster.get("pod/mnist-predictor", namespace=NAMESPACE)
    finally:
        cluster.kubectl("delete", "namespace", NAMESPACE, namespace="")
        cluster.kubectl("delete", "persistentvolume", "kserve", namespace="")


def test_it_is_ready_without_a_restart(predictor: Document) -> None:
    assert restarts(predictor) == 0


def test_kserve_s_client_is_content(predictor: Document, cluster: Cluster, node: Node) -> None:
    """By the Service, which the node reaches like any client of the cluster."""
    assert predictor
    service = cluster.get("service/mnist-predictor", namespace=NAMESPACE)
    url = f"http://{service['spec']['clusterIP']}"
    command = [*node.namespaces.enter("net"), str(PYTHON), "-m"]
    command += ["tests.integration.clients.kserve_rest", url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for call in ("v1 server live", "v1 model ready", "v2 server ready", "v2 model ready"):
        assert found[call] is True, call
    assert found["v2 infer images"]["label"] == [1, 1]
    assert found["v2 infer images in binary"]["label"] == [1, 1]
    assert [p["label"] for p in found["v1 infer images"]["predictions"]] == [1, 1]
    assert found["v2 infer numbers"]["label"] == [1, 0]
