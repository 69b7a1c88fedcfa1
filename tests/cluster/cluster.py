"""Any cluster that has the project's images, through kubectl."""

import hashlib
import json
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import yaml

from loadtest.servers import wait_until
from tests.cluster.node import Node
from tests.deploy.resources import Document, manifest
from tests.serving import QUICK_JVM, ROOT

T = TypeVar("T")
NAMESPACE = "model-serving"
SERVER = "app.kubernetes.io/name=model-server"
DEPLOYMENT = "deployment/model-server"
TOKEN = "of-the-tests"


class Cluster:
    """A cluster.

    Args:
        command: what runs kubectl, with its options.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)

    def kubectl(
        self,
        *arguments: str,
        text: str | None = None,
        check: bool = True,
        namespace: str = NAMESPACE,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl, with standard error in standard output.

        Args:
            arguments: of kubectl.
            text: its standard input.
            check: whether it must succeed.
            namespace: that it works in; empty where resources name theirs.
        """
        done = subprocess.run(
            self._in(namespace, arguments),
            input=text,
            check=False,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}:\n{done.stdout}"
        return done

    def start(self, *arguments: str, namespace: str = NAMESPACE) -> subprocess.Popen[str]:
        """Start kubectl, with pipes for standard input and output."""
        return subprocess.Popen(
            self._in(namespace, arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _in(self, namespace: str, arguments: Sequence[str]) -> list[str]:
        where = [f"--namespace={namespace}"] if namespace else []
        return [*self._command, *where, *arguments]

    def apply(self, *documents: Document) -> None:
        """Apply resources; a warning of the API server is an error."""
        text = yaml.safe_dump_all(documents)
        self.kubectl("apply", "--warnings-as-errors", "-f", "-", text=text, namespace="")

    def get(self, *arguments: str, namespace: str = NAMESPACE) -> Document:
        """A resource, or a list of them under `items`."""
        done = self.kubectl("get", *arguments, "--output=json", namespace=namespace)
        return dict(json.loads(done.stdout))

    def pods(self, selector: str = SERVER) -> list[Document]:
        """The pods with these labels that are not being deleted, the oldest first."""
        found = self.get("pods", f"--selector={selector}", "--sort-by=.metadata.creationTimestamp")
        return [pod for pod in found["items"] if "deletionTimestamp" not in pod["metadata"]]

    def wait_until(self, look: Callable[[], T], timeout: float = 180) -> T:
        """Poll `look` until it returns something true; a failure says how the pods are."""
        try:
            return wait_until(look, timeout)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from None

    def wait_until_rolled_out(self, timeout: int = 300) -> None:
        """Wait until every replica is of the present version, and ready, and no other is left."""
        status = ("rollout", "status", DEPLOYMENT, f"--timeout={timeout}s")
        done = self.kubectl(*status, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{self.describe()}"
        replicas = self.get(DEPLOYMENT)["spec"]["replicas"]
        all_pods = ("pods", f"--selector={SERVER}")
        self.wait_until(lambda: len(self.get(*all_pods)["items"]) == replicas)

    def describe(self) -> str:
        """How the pods are, for a failure's message."""
        commands = (
            "get pods --output=wide",
            "get events --sort-by=.lastTimestamp",
            f"logs --selector={SERVER} --tail=20 --prefix --all-containers",
        )
        return "\n".join(
            self.kubectl(*command.split(), check=False).stdout[-4000:] for command in commands
        )


class Exits:
    """The exit codes of the service's containers that end inside its `with` block.

    Attributes:
        codes: by name of the pod, at the end of the block.
    """

    _COLUMNS = "{.metadata.name} {.status.containerStatuses[*].state.terminated.exitCode}"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.codes: dict[str, int] = {}

    def __enter__(self) -> Self:
        look = ("get", "pods", f"--selector={SERVER}", "--watch")
        # A pod is gone right after its container has ended: only who watches sees how.
        self._process = self._cluster.start(*look, f"--output=jsonpath={self._COLUMNS}{{'\\n'}}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        printed, _errors = self._process.communicate()
        lines = (line.split() for line in printed.splitlines())
        self.codes = {line[0]: int(line[1]) for line in lines if len(line) == 2}


def define_custom_resources(node: Node) -> None:
    """Have a node know the resources of Gateway API, KEDA and the Prometheus operator."""
    # Their definitions are too long for the annotation of an apply by the client.
    files = str(node.binaries / "crds")
    node.kubectl("apply", "--server-side", "-f", files)
    node.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")


def token_secret() -> Document:
    """The Secret of tokens as the guide has it made, with `TOKEN` in it."""
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "model-server-tokens", "namespace": NAMESPACE},
        "stringData": {"tokens": f"{digest} tests\n"},
    }


def documents(rendering: str) -> list[Document]:
    """The documents of a rendering, in copies that may be changed."""
    return list(yaml.safe_load_all(manifest(rendering)))


def for_a_small_node(rendering: str) -> list[Document]:
    """The documents of a rendering for two cores at most.

    They ask for little CPU, and have JVMs that start quickly.
    """
    changed = documents(rendering)
    for document in changed:
        if document["kind"] in ("Deployment", "Job"):
            for container in document["spec"]["template"]["spec"]["containers"]:
                container["resources"]["requests"]["cpu"] = "100m"
                option = {"name": "JDK_JAVA_OPTIONS", "value": QUICK_JVM}
                container.setdefault("env", []).append(option)
    return changed


def restarts(pod: Document) -> int:
    """How often the pod's containers were started again."""
    statuses: list[dict[str, Any]] = pod["status"].get("containerStatuses", [])
    return sum(status["restartCount"] for status in statuses)
