"""Any cluster, through kubectl; and a pod in it that sends requests."""

import base64
import hashlib
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml

from loadtest.servers import ROOT, wait_until

T = TypeVar("T")
NAMESPACE = "model-serving"
SERVER = "app.kubernetes.io/name=model-server"
TOKEN = "of-the-tests"
IMAGE = "model-server:0.1.0"
_CLIENTS = "model-serving-clients"
_CLIENT = f"""\
apiVersion: v1
kind: Namespace
metadata:
  name: {_CLIENTS}
  labels: {{model-serving/client: "true"}}
---
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: {_CLIENTS}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: client
      image: {IMAGE}
      imagePullPolicy: IfNotPresent
      command: [sleep, infinity]
"""


class Cluster:
    """A cluster whose images are loaded.

    Args:
        prefix: before each kubectl command, such as that which enters a node's namespaces.
        kubectl: the program, with options.
    """

    def __init__(self, prefix: Sequence[str], kubectl: Sequence[str]) -> None:
        self._command = [*prefix, *kubectl]

    def run(
        self, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl, with standard error in standard output."""
        done = subprocess.run(
            [*self._command, *arguments],
            input=stdin,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}:\n{done.stdout}"
        return done

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start kubectl with pipes to its standard input and output."""
        return subprocess.Popen(
            [*self._command, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def apply(self, manifest: str, *options: str) -> str:
        """Apply a manifest; a warning of the API server is an error."""
        return self.run("apply", "--warnings-as-errors", *options, "-f", "-", stdin=manifest).stdout

    def get(self, *arguments: str, namespace: str = NAMESPACE) -> dict[str, Any]:
        """An object, or a list of them under `items`."""
        done = self.run("--namespace", namespace, "get", *arguments, "--output=json")
        return dict(json.loads(done.stdout))

    def pods(self, selector: str = SERVER, namespace: str = NAMESPACE) -> list[dict[str, Any]]:
        """The pods with these labels that are not being deleted."""
        found = self.get("pods", f"--selector={selector}", namespace=namespace)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def wait_until(self, look: Callable[[], T], timeout: float = 120) -> T:
        """Poll `look` until it returns something true; if it does not, say how the pods are."""
        try:
            return wait_until(look, timeout)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from None

    def rolled_out(self, timeout: int = 300, namespace: str = NAMESPACE) -> None:
        """Wait until every replica of the Deployment is the present version, and ready."""
        done = self.run(
            "--namespace", namespace, "rollout", "status", "deployment/model-server",
            f"--timeout={timeout}s", check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout}\n{self.describe(namespace)}"

    def describe(self, namespace: str = NAMESPACE) -> str:
        """How the pods are, for a test that fails."""
        shown = ("get pods --output=wide", "get events --sort-by=.lastTimestamp")
        logs = f"logs --selector={SERVER} --tail=20 --prefix --all-containers"
        return "\n".join(
            self.run("--namespace", namespace, *command.split(), check=False).stdout[-6000:]
            for command in (*shown, logs)
        )

    def make_secrets(self, namespace: str = NAMESPACE) -> None:
        """Make the namespace with the tokens, as the guide does."""
        self.apply(f"{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}")
        digest = hashlib.sha256(TOKEN.encode()).hexdigest()
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "model-server-tokens", "namespace": namespace},
            "stringData": {"tokens": f"{digest} tests\n"},
        }
        self.apply(json.dumps(secret))

    def remove(self, *namespaces: str) -> None:
        """Delete namespaces, and wait until nothing of them is left."""
        self.run("delete", "namespace", "--ignore-not-found", *namespaces)


def rendered(text: str, patches: Mapping[str, str] | None = None) -> str:
    """A rendering for a test machine: little CPU asked for, and images that are loaded.

    Args:
        text: YAML of the documents.
        patches: texts in it to replace, each of which must occur.
    """
    for old, new in (patches or {}).items():
        assert old in text, old
        text = text.replace(old, new)
    documents = [document for document in yaml.safe_load_all(text) if document]
    for document in documents:
        if document["kind"] in ("Deployment", "Job"):
            for container in document["spec"]["template"]["spec"]["containers"]:
                container["resources"]["requests"]["cpu"] = "100m"
                container["imagePullPolicy"] = "IfNotPresent"
    return yaml.safe_dump_all(documents)


@dataclass(frozen=True)
class Outcome:
    """What became of a client's requests.

    Attributes:
        sent: how many.
        problems: how many ended otherwise than with the right label, by what they ended with.
        slowest: seconds of the slowest.
    """

    sent: int
    problems: dict[str, int]
    slowest: float

    @property
    def lost(self) -> int:
        return sum(self.problems.values())


class Client:
    """A pod that sends requests from a namespace of clients; it runs inside a `with` block.

    Args:
        cluster: where.
        namespace, labels: of the pod.
    """

    def __init__(self, cluster: Cluster, namespace: str = _CLIENTS) -> None:
        self.cluster, self.namespace = cluster, namespace

    def __enter__(self) -> Self:
        self.cluster.apply(_CLIENT.replace(_CLIENTS, self.namespace))
        self.run_kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=60s")
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.remove(self.namespace)

    def run_kubectl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.cluster.run("--namespace", self.namespace, *arguments, check=check)

    def python(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the pod until it ends."""
        return self.run_kubectl(
            "exec", "client", "--", "python", "-c", code, *arguments, check=False
        )

    def load(self, host: str, connections: int = 8, *, keep: bool = True) -> "Load":
        """Requests to a host, each connection kept or closed after each."""
        return Load(self, host, connections, keep)


class Load:
    """Requests from a client's pod, inside a `with` block.

    Attributes:
        outcome: once they have ended.
    """

    outcome: Outcome

    def __init__(self, client: Client, host: str, connections: int, keep: bool) -> None:
        code = (Path(__file__).parent / "client.py").read_text()
        picture = base64.b64encode((ROOT / "samples" / "seven.png").read_bytes()).decode()
        self._command = [
            "--namespace", client.namespace, "exec", "--stdin", "client", "--", "python", "-c",
            code, host, "8080", str(connections), "keep" if keep else "close", TOKEN, picture,
        ]  # fmt: skip
        self._cluster = client.cluster

    def __enter__(self) -> Self:
        self._process = self._cluster.start(*self._command)
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line == "started\n", line + self._process.communicate()[0]
        return self

    def __exit__(self, *_: object) -> None:
        printed, _ = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, printed
        self.outcome = Outcome(**json.loads(printed.splitlines()[-1]))
