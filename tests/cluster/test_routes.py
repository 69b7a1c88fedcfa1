"""The ways in from outside, through Traefik: what passes them, and how a canary gets its share."""

import json
import math
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.cluster import traefik
from tests.cluster.clients import Client
from tests.cluster.cluster import (
    DEPLOYMENT,
    SERVER,
    TOKEN,
    Cluster,
    define_custom_resources,
    for_a_small_node,
    restarts,
)
from tests.cluster.node import ADDRESS, Node
from tests.deploy.resources import Document
from tests.deploy.runbook import commands

HOST = "model-serving.example.com"
PREDICTIONS = f"https://{HOST}/predictions/mnist"
CANARY = "app.kubernetes.io/name=model-server,app.kubernetes.io/instance=canary"
MIB = 1 << 20
LIBRARY = "docker.io/library"
# Prints status, headers and body of a request, or why there was no answer.
ASK = """
import json, sys, urllib.error, urllib.request
url, headers, size, times = json.loads(sys.argv[1])
body = open("/clients/seven.png", "rb").read()
if size:
    body = b'{"instances": [[0, 1]]}'.ljust(size)
try:
    for _ in range(times):
        response = urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30)
except urllib.error.HTTPError as error:
    response = error
except OSError as error:
    sys.exit(f"unreachable: {error}")
found = {name.lower(): value for name, value in response.headers.items()}
print(json.dumps([response.status, found, response.read().decode()]))
"""
# The same of a body that is refused before its end, for which urllib never looks.
TOO_LARGE = """
import asyncio, sys
from loadtest.traffic import Client
url, token, size = sys.argv[1:]
headers = f"Authorization: Bearer {token}\\r\\nContent-Type: application/json\\r\\n"
outcome = asyncio.run(Client(url).ask(bytes(int(size)), headers))
print(outcome.status, outcome.body.decode())
"""


@dataclass
class Answer:
    """What a client got; status 0 where it was nothing."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""


@pytest.fixture(scope="module")
def routed(node: Node | None, service: Cluster) -> Iterator[Cluster]:
    """The service behind Traefik, with a certificate for its name."""
    if node is None:
        pytest.skip("needs a controller of routes of its own: shown on the tests' own node")
    define_custom_resources(node)
    certificate = node.authority.issue("route", f"/CN={HOST}", [f"DNS:{HOST}"])
    files = (f"--cert={certificate.certificate}", f"--key={certificate.key}")
    service.kubectl("create", "secret", "tls", "model-server-tls", *files)
    with traefik.running(node):
        yield service
    service.kubectl("delete", "secret", "model-server-tls")


@pytest.fixture(scope="module")
def outside(routed: Cluster, node: Node) -> Iterator[Client]:
    """A client that no policy lets near the pods, and that knows the route's name."""
    authority = node.authority.certificate.read_bytes()
    with Client(routed, "outside", hosts={HOST: ADDRESS}, authority=authority) as client:
        yield client


def ask(
    client: Client, url: str = PREDICTIONS, size: int = 0, times: int = 1, **headers: str
) -> Answer:
    """Ask for the label of a seven, or with a size for one of xor's, padded to so many bytes.

    Returns the last answer, or the first one that is an error.
    """
    sent = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "image/png"}
    if size:
        sent["Content-Type"] = "application/json"
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    done = client.python(ASK, json.dumps([url, sent, size, times]))
    return Answer(0, {}, done.stdout) if done.returncode else Answer(*json.loads(done.stdout))


def until(cluster: Cluster, status: int, asking: Callable[[], Answer]) -> Answer:
    """Ask until the answer has a status; return that answer."""
    answers: list[Answer] = []

    def asked() -> bool:
        answers.append(asking())
        return answers[-1].status == status

    cluster.wait_until(asked, 60)
    return answers[-1]


def counted(cluster: Cluster, selector: str) -> int:
    """Requests that the handlers of these pods have answered with 200."""
    code = (
        "import urllib.request as r;"
        "print(r.urlopen('http://127.0.0.1:8083/metrics').read().decode())"
    )
    total = 0.0
    for pod in cluster.pods(selector):
        command = ("exec", pod["metadata"]["name"], "--", "python", "-c", code)
        for line in cluster.kubectl(*command).stdout.splitlines():
            if line.startswith("inference_requests_total") and 'code="200"' in line:
                total += float(line.rsplit(" ", 1)[1]) if 'model="mnist"' in line else 0.0
    return int(total)


class TestIngress:
    def test_what_passes(self, routed: Cluster, outside: Client, served: Cluster) -> None:
        assert served
        answer = until(routed, 200, lambda: ask(outside))
        assert json.loads(answer.body)["predictions"][0]["label"] == 7
        known = ask(outside, X_Request_Id="of-a-client")
        assert known.headers["x-request-id"] == "of-a-client"
        xor = PREDICTIONS.replace("mnist", "xor")
        assert ask(outside, xor, MIB).status == 200
        status, _, body = outside.python(TOO_LARGE, xor, TOKEN, str(MIB + 1)).stdout.partition(" ")
        assert status == "413", body
        assert json.loads(body)["code"] == 413
        stranger = ask(outside, Authorization="Bearer another")
        assert stranger.status == 401
        assert "www-authenticate" in stranger.headers

    def test_nothing_is_answered_without_tls(self, routed: Cluster, outside: Client) -> None:
        assert routed
        assert ask(outside, PREDICTIONS.replace("https", "http")).status == 404


@pytest.fixture(scope="module")
def canary(routed: Cluster, node: Node) -> Iterator[None]:
    """The service with a canary that has a tenth of its requests, through a Gateway."""
    for other in ("model-server-canary:0.1.0", "model-server:0.1.1"):
        node.containerd.tag(f"{LIBRARY}/model-server:0.1.0", f"{LIBRARY}/{other}")
    documents = for_a_small_node("component httproute-canary")
    routed.kubectl("delete", "ingress", "model-server", "--ignore-not-found")
    routed.apply(*documents)
    rolled_out(routed)
    yield
    gone = [d for d in documents if "canary" in d["metadata"]["name"]]
    gone += [d for d in documents if d["kind"] in ("HTTPRoute", "Gateway")]
    routed.kubectl("delete", *map(name, gone), "--ignore-not-found")


@pytest.mark.usefixtures("canary")
class TestCanary:
    """Component httproute-canary, and what its README and the runbook say to do with it."""

    def test_testers_reach_it(self, routed: Cluster, outside: Client) -> None:
        routed.wait_until(lambda: ask(outside).status == 200, 60)
        before = counted(routed, CANARY)
        for _ in range(5):
            assert ask(outside, X_Canary="always").status == 200
        assert counted(routed, CANARY) - before == 5

    def test_its_share(
        self, routed: Cluster, outside: Client, cluster_figures: dict[str, Any]
    ) -> None:
        """Within three standard deviations of a tenth."""
        before = counted(routed, CANARY), counted(routed, SERVER)
        with outside.load(PREDICTIONS, users=8) as load:
            routed.wait_until(lambda: counted(routed, SERVER) - before[1] > 1000)
        own, everything = counted(routed, CANARY) - before[0], counted(routed, SERVER) - before[1]
        cluster_figures["canary_share"] = [own, load.sent]
        assert load.problems == {}
        assert everything == load.sent
        assert abs(own - load.sent / 10) <= 3 * math.sqrt(load.sent * 0.1 * 0.9)

    def test_promotion(
        self, routed: Cluster, outside: Client, cluster_figures: dict[str, Any]
    ) -> None:
        """The stable pods become its version one by one, then it goes; its own is never started
        again meanwhile."""
        (pod,) = routed.pods(CANARY)
        old = {p["metadata"]["name"] for p in routed.pods()} - {pod["metadata"]["name"]}
        documents = for_a_small_node("component httproute-canary")
        for document in documents:
            if document["kind"] == "Deployment" and document["metadata"]["name"] == "model-server":
                (container,) = document["spec"]["template"]["spec"]["containers"]
                container["image"] = "model-server:0.1.1"
        with (
            outside.load(PREDICTIONS) as kept,
            outside.load(PREDICTIONS, keep_alive=False) as single,
        ):
            routed.apply(*documents)
            rolled_out(routed)
            (after,) = routed.pods(CANARY)
            assert after["metadata"]["uid"] == pod["metadata"]["uid"]
            assert restarts(after) == 0
            assert not old & {p["metadata"]["name"] for p in routed.pods()}
            # What the overlay is without it, and what an apply that prunes then removes.
            without = for_a_small_node("component httproute")
            routed.apply(*[d for d in without if d["kind"] == "HTTPRoute"])
            gone = {name(d) for d in documents} - {name(d) for d in without}
            assert gone == {"Deployment/model-server-canary", "Service/model-server-canary"} | {
                each for each in gone if each.startswith("ConfigMap/")
            }
            routed.kubectl("delete", *sorted(gone))
            routed.wait_until(lambda: not routed.get("pods", f"--selector={CANARY}")["items"])
        for load, kind in ((kept, "kept"), (single, "single")):
            cluster_figures[f"promotion_{kind}"] = load.figures
            assert load.problems == {}
            assert load.sent > 100

    def test_abort(self, routed: Cluster, outside: Client, cluster_figures: dict[str, Any]) -> None:
        """By the runbook's command, under load: the canary gets no more, and nothing is lost."""
        routed.apply(*for_a_small_node("component httproute-canary"))
        rolled_out(routed)
        start = counted(routed, CANARY)
        (command,) = [c for c in commands(POD="", NODE="", N="") if "patch httproute" in c]
        with outside.load(PREDICTIONS) as load:
            routed.wait_until(lambda: counted(routed, CANARY) > start)
            routed.kubectl(*shlex.split(command)[1:], namespace="")

            def rests() -> bool:
                before, sent = counted(routed, CANARY), counted(routed, SERVER)
                routed.wait_until(lambda: counted(routed, SERVER) - sent > 100)
                return counted(routed, CANARY) == before

            routed.wait_until(rests)
        cluster_figures["abort"] = load.figures
        assert load.problems == {}
        assert ask(outside, X_Canary="always").status == 200

    def test_a_refusal_keeps_its_retry_after(self, routed: Cluster, outside: Client) -> None:
        """Here the canary's, of whom more is asked than a request a second."""
        routed.kubectl("set", "env", f"{DEPLOYMENT}-canary", "RATE_LIMIT=1")
        rolled_out(routed)
        refused = until(routed, 429, lambda: ask(outside, times=9, X_Canary="always"))
        assert int(refused.headers["retry-after"]) >= 1
        assert json.loads(refused.body)["code"] == 429


def rolled_out(cluster: Cluster) -> None:
    """Wait until no pod is left that is not of the present versions."""
    for deployment in (DEPLOYMENT, f"{DEPLOYMENT}-canary"):
        cluster.kubectl("rollout", "status", deployment, "--timeout=300s")
    cluster.wait_until(lambda: len(cluster.get("pods", f"--selector={SERVER}")["items"]) == 3)


def name(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"
