"""Rollouts that cannot succeed: the old pods serve on, `rollout status` says so, `undo` ends it."""

import base64
import contextlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.archives import altered
from tests.cluster.clients import Client
from tests.cluster.cluster import DEPLOYMENT, NAMESPACE, Cluster, for_a_small_node
from tests.deploy.resources import Document

# Seconds, instead of the minutes that a node pool and a registry may take. No new pod is ever
# ready, so that none needs to have failed by then.
DEADLINE = 15


def deployment() -> Document:
    """The Deployment, with a deadline for tests."""
    documents = for_a_small_node("overlay local")
    (found,) = [document for document in documents if document["kind"] == "Deployment"]
    found["spec"]["progressDeadlineSeconds"] = DEADLINE
    return found


def serving(archive: Path) -> list[Document]:
    """The Deployment with one archive instead of those in its image, and what it needs."""
    data = {"xor.mar": base64.b64encode(archive.read_bytes()).decode()}
    metadata = {"name": "archives", "namespace": NAMESPACE}
    store = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "binaryData": data,
    }
    changed = deployment()
    spec = changed["spec"]["template"]["spec"]
    spec["volumes"].append({"name": "archives", "configMap": {"name": "archives"}})
    mount = {"name": "archives", "mountPath": "/app/model_store", "readOnly": True}
    spec["containers"][0]["volumeMounts"].append(mount)
    return [store, changed]


@contextlib.contextmanager
def failing(
    cluster: Cluster, client: Client, figures: dict[str, Any], *change: Document
) -> Iterator[None]:
    """Apply what cannot be rolled out, look at it in the block, and undo it, all under load."""
    before = {pod["metadata"]["name"] for pod in cluster.pods()}
    with client.load() as load:
        cluster.apply(*change)
        done = cluster.kubectl("rollout", "status", DEPLOYMENT, check=False)
        assert done.returncode == 1, done.stdout
        assert "exceeded its progress deadline" in done.stdout
        yield
        cluster.kubectl("rollout", "undo", DEPLOYMENT)
        cluster.wait_until_rolled_out()
    figures["failed_rollouts"] = {
        key: figures.get("failed_rollouts", {}).get(key, 0) + load.figures[key]
        for key in ("sent", "lost")
    }
    assert load.problems == {}
    assert load.sent > 100
    # Nothing but the new pods was touched.
    assert {pod["metadata"]["name"] for pod in cluster.pods()} == before


@pytest.mark.parametrize(
    "image", ["model-server:absent", f"model-server@sha256:{'0' * 64}"], ids=["tag", "digest"]
)
def test_an_image_that_is_not_there(
    image: str, served: Cluster, client: Client, cluster_figures: dict[str, Any]
) -> None:
    changed = deployment()
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = image
    with failing(served, client, cluster_figures, changed):
        served.wait_until(lambda: reasons(served) & {"ErrImagePull", "ImagePullBackOff"})


def test_a_torchscript_of_another_digest(
    served: Cluster,
    client: Client,
    store: Path,
    tmp_path: Path,
    cluster_figures: dict[str, Any],
) -> None:
    wrong = altered(store / "xor.mar", tmp_path / "xor.mar", {"model.pt": b"another"})
    with failing(served, client, cluster_figures, *serving(wrong)):
        served.wait_until(lambda: "model.pt of model xor 1.0 has SHA-256" in last_words(served))


def test_a_warm_up_that_fails(
    served: Cluster,
    client: Client,
    store: Path,
    tmp_path: Path,
    cluster_figures: dict[str, Any],
) -> None:
    """The archive says another label of its example than the model."""
    with zipfile.ZipFile(store / "xor.mar") as archive:
        card = json.loads(archive.read("model.json"))
    label = card["example_label"]
    card["example_label"] = 1 - label
    changes = {"model.json": json.dumps(card).encode()}
    wrong = altered(store / "xor.mar", tmp_path / "xor.mar", changes)
    with failing(served, client, cluster_figures, *serving(wrong)):
        reason = f"the warm-up prediction is {label}, not {1 - label}"
        new = served.pods()[-1]["metadata"]["name"]
        look = (
            "import urllib.request as r, urllib.error as e\n"
            "try: r.urlopen('http://127.0.0.1:8083/readyz')\n"
            "except e.HTTPError as error: print(error.read().decode())"
        )
        command = ("exec", new, "--", "python", "-c", look)
        served.wait_until(lambda: reason in served.kubectl(*command, check=False).stdout)


def reasons(cluster: Cluster) -> set[str]:
    """Why containers do not run."""
    return {
        status["state"]["waiting"]["reason"]
        for pod in cluster.pods()
        for status in pod["status"].get("containerStatuses", [])
        if "waiting" in status["state"]
    }


def last_words(cluster: Cluster) -> str:
    """The log of the newest pod's container that ended, or of the present one."""
    new = cluster.pods()[-1]["metadata"]["name"]
    before = cluster.kubectl("logs", new, "--previous", check=False)
    return before.stdout + cluster.kubectl("logs", new, check=False).stdout
