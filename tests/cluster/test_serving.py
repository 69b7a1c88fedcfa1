"""The service on a cluster: it answers by its name, and only whom it should."""

import json
import re
import time
from typing import Any

import pytest

from tests.cluster.clients import HOST, PREDICTIONS, Client
from tests.cluster.cluster import TOKEN, Cluster, documents, restarts
from tests.cluster.node import Node

# Prints the status and body of a POST, or why there was none.
ASK = """
import sys, urllib.error, urllib.request
url, token = sys.argv[1:]
body = open("/clients/seven.png", "rb").read()
headers = {"Authorization": f"Bearer {token}", "Content-Type": "image/png"}
try:
    request = urllib.request.Request(url, body if "predictions" in url else None, headers)
    response = urllib.request.urlopen(request, timeout=5)
except urllib.error.HTTPError as error:
    response = error
except OSError as error:
    sys.exit(f"unreachable: {error}")
print(response.status, response.read().decode())
"""

METRICS = f"http://{HOST}:8083/metrics"


def ask(client: Client, url: str = PREDICTIONS, token: str = TOKEN) -> str:
    return client.python(ASK, url, token).stdout


def answered(text: str) -> str:
    """The body of an answer of 200, else nothing."""
    return text.removeprefix("200 ") if text.startswith("200 ") else ""


def test_seconds_from_apply_to_the_answer(
    client: Client, service: Cluster, cluster_figures: dict[str, Any]
) -> None:
    """Two pods become ready without a restart, and a seven is one, by the Service's name."""
    created = service.get("deployment/model-server")["metadata"]["creationTimestamp"]
    answer = service.wait_until(lambda: answered(ask(client)))
    now = client.python("import time; print(time.time())").stdout
    begun = client.python(
        f"import datetime; print(datetime.datetime.fromisoformat('{created}').timestamp())"
    ).stdout
    cluster_figures["apply_to_answer_seconds"] = round(float(now) - float(begun), 1)
    (prediction,) = json.loads(answer)["predictions"]
    assert prediction["label"] == 7
    service.wait_until_rolled_out()
    pods = service.pods()
    assert len(pods) == 2
    assert [restarts(pod) for pod in pods] == [0, 0]


def test_a_token_is_asked_for(client: Client, service: Cluster) -> None:
    service.wait_until_rolled_out()
    assert ask(client, token="another").startswith("401 ")


class TestPolicies:
    @pytest.fixture(autouse=True)
    def enforced(self, node: Node | None, service: Cluster) -> None:
        """Whether a cluster enforces policies depends on its network."""
        if node is None:
            pytest.skip("not every cluster enforces NetworkPolicies: shown on the tests' own node")
        service.wait_until_rolled_out()

    def test_a_namespace_without_the_label_is_refused(self, service: Cluster) -> None:
        with Client(service, "strangers") as stranger:
            service.wait_until(lambda: "unreachable" in ask(stranger), 30)
            time.sleep(2)
            assert "unreachable" in ask(stranger)

    def test_metrics_are_for_prometheus_alone(self, client: Client, service: Cluster) -> None:
        """Component monitoring's policy lets pods labelled so in, of namespace `monitoring`."""
        policies = [
            document
            for document in documents("component monitoring")
            if document["kind"] == "NetworkPolicy"
            and document["metadata"]["name"] == "model-server-scrape"
        ]
        assert len(policies) == 1
        service.apply(*policies)
        prometheus = {"app.kubernetes.io/name": "prometheus"}
        with (
            Client(service, "monitoring", prometheus) as scraper,
            Client(service, "others", prometheus) as other,
        ):
            service.wait_until(lambda: ask(scraper, METRICS).startswith("200 "), 30)
            assert "inference_requests_total" in ask(scraper, METRICS)
            # It may not send requests, as its namespace is no client's.
            assert "unreachable" in ask(scraper)
            assert "unreachable" in ask(other, METRICS)
            assert "unreachable" in ask(client, METRICS)
        service.kubectl("delete", "networkpolicy", "model-server-scrape")
        assert ask(client).startswith("200 ")

    def test_nothing_leaves_the_pod(self, client: Client, service: Cluster) -> None:
        """Neither to another pod, which answers others, nor to the cluster's DNS."""
        other = service.get("pod/client", namespace=client.namespace)["status"]["podIP"]
        command = ("exec", "-i", "client", "--", "python", "-m", "http.server", "8000")
        listening = service.start(*command, namespace=client.namespace)
        code = "import socket; socket.create_connection(('{}', {}), timeout=3); print('connected')"
        try:
            with Client(service, "outsiders") as outsider:
                service.wait_until(
                    lambda: "connected" in outsider.python(code.format(other, 8000)).stdout, 30
                )
            name = service.pods()[0]["metadata"]["name"]
            for host, port in ((other, 8000), ("10.96.0.10", 53), (HOST, 8080)):
                connect = ("exec", name, "--", "python", "-c", code.format(host, port))
                done = service.kubectl(*connect, check=False)
                assert done.returncode, f"{host}:{port} {done.stdout}"
                assert re.search("(?i)error: ", done.stdout), done.stdout
        finally:
            listening.kill()
            listening.communicate()
