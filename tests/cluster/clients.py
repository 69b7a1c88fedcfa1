"""Pods that send requests to the service, by its name."""

import base64
import json
import subprocess
from types import TracebackType
from typing import Any, Self

from tests.cluster.cluster import NAMESPACE, TOKEN, Cluster
from tests.cluster.load import Plan
from tests.deploy.resources import Document
from tests.serving import ROOT

IMAGE = "model-server:0.1.0"
HOST = f"model-server.{NAMESPACE}.svc.cluster.local"
PREDICTIONS = f"http://{HOST}:8080/predictions/mnist"
_FILES = {
    "loadtest/traffic.py": "loadtest/traffic.py",
    "loadtest/arrivals.py": "loadtest/arrivals.py",
    "load.py": "tests/cluster/load.py",
    "seven.png": "samples/seven.png",
}


class Client:
    """A pod that runs inside a `with` block, in a namespace of its own.

    Args:
        cluster: where.
        namespace: its name.
        pod_labels, namespace_labels: of the two.
        hosts: addresses of names that no DNS has.
        authority: in PEM, whose certificates it trusts besides no other.
    """

    def __init__(  # noqa: PLR0913 (each is a way in which clients differ)
        self,
        cluster: Cluster,
        namespace: str = "model-serving-clients",
        pod_labels: dict[str, str] | None = None,
        namespace_labels: dict[str, str] | None = None,
        *,
        hosts: dict[str, str] | None = None,
        authority: bytes = b"",
    ) -> None:
        self._cluster, self.namespace = cluster, namespace
        self._pod_labels = pod_labels or {}
        self._namespace_labels = namespace_labels or {}
        self._hosts, self._authority = hosts or {}, authority

    def __enter__(self) -> Self:
        self._cluster.apply(*self._documents())
        ready = ("wait", "--for=condition=Ready", "pod/client", "--timeout=120s")
        self._cluster.kubectl(*ready, namespace=self.namespace)
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.kubectl("delete", "namespace", self.namespace, "--wait=false")

    def _documents(self) -> list[Document]:
        contents = {
            there.replace("/", "."): base64.b64encode((ROOT / here).read_bytes()).decode()
            for there, here in _FILES.items()
        }
        contents["authority.pem"] = base64.b64encode(self._authority).decode()
        places = {*_FILES, "authority.pem"}
        items = [{"key": there.replace("/", "."), "path": there} for there in places]
        container = {
            "name": "client",
            "image": IMAGE,
            "command": ["sleep", "infinity"],
            "env": [
                {"name": "PYTHONPATH", "value": "/clients"},
                {"name": "SSL_CERT_FILE", "value": "/clients/authority.pem"},
            ],
            "volumeMounts": [{"name": "clients", "mountPath": "/clients"}],
        }
        volume = {"name": "clients", "configMap": {"name": "clients", "items": items}}
        metadata = {"namespace": self.namespace}
        return [
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": self.namespace, "labels": self._namespace_labels},
            },
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": metadata | {"name": "clients"},
                "binaryData": contents,
            },
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": metadata | {"name": "client", "labels": self._pod_labels},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [container],
                    "volumes": [volume],
                    "hostAliases": [
                        {"ip": address, "hostnames": [name]}
                        for name, address in self._hosts.items()
                    ],
                },
            },
        ]

    def python(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the pod until it ends."""
        command = ("exec", "client", "--", "python", "-c", code, *arguments)
        return self._cluster.kubectl(*command, check=False, namespace=self.namespace)

    def load(self, url: str = PREDICTIONS, **plan: Any) -> "Load":
        """Requests to the service, by default users with an image each; see `load.Plan`."""
        text = Plan(url, TOKEN, **plan).dumps()
        command = ("exec", "-i", "client", "--", "python", "/clients/load.py", text)
        return Load(self._cluster.start(*command, namespace=self.namespace))


class Load:
    """Requests from a client; they are sent until its `with` block ends.

    Attributes:
        sent: how many.
        problems: those without the right answer, by what there was instead.
        requests: of each, when it was sent (Unix time), the seconds that it took, and its status.
        figures: for a report.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __enter__(self) -> Self:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line == "started\n", line + self._process.communicate()[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None
    ) -> None:
        printed, _ = self._process.communicate(timeout=120)
        assert self._process.returncode == 0, printed
        report: dict[str, Any] = json.loads(printed.splitlines()[-1])
        self.problems: dict[str, int] = report.pop("problems")
        self.requests: list[tuple[float, float, int]] = report.pop("requests")
        self.sent: int = report["sent"]
        self.lost = sum(self.problems.values())
        self.figures = {"sent": self.sent, "lost": self.lost, "p99_ms": report["p99_ms"]}
