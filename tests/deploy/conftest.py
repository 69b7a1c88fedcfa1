"""Pods of the images that tests share."""

from collections.abc import Iterator

import pytest

from loadtest.digits import Digit
from loadtest.digits import load as load_digits
from tests.deploy.cluster import Cluster
from tests.deploy.containers import Pod
from tests.deploy.traffic import Service, label


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The base."""
    return Cluster("base", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="package")
def server(images: dict[str, str], cluster: Cluster) -> Iterator[Pod]:
    assert images
    with cluster.pod("model-server") as pod:
        yield pod.wait_until_ready()


@pytest.fixture(scope="package")
def digits(server: Pod) -> list[Digit]:
    """Digits of MNIST's test set that the model classifies correctly."""
    every = load_digits()
    known = [digit for digit in every if label(server.url("http"), digit.png) == digit.label]
    assert len(known) >= 0.98 * len(every)
    return known


@pytest.fixture(scope="package")
def service(cluster: Cluster, server: Pod) -> Iterator[Service]:
    ports = cluster.resources.named("Service", "model-server")["spec"]["ports"]
    (port,) = [port["port"] for port in ports if port["targetPort"] == "http"]
    with Service(server.gateway, port) as running:
        running.endpoints = [server.ip]
        yield running
