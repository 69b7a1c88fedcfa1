"""Add-on: a Prometheus beside the node, which the Prometheus operator configures.

The operator reads every ServiceMonitor and PrometheusRule of the cluster, and writes a
configuration. It would start Prometheus in a pod; as no image of that can be pulled, it is asked
for none, and Prometheus runs beside the node with that configuration.
"""

import base64
import contextlib
import gzip
import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import yaml

from tests.cluster.namespaces import ProgramError
from tests.cluster.node import ADDRESS, Node

_PORT = 9090
URL = f"http://{ADDRESS}:{_PORT}"
NAMESPACE = "monitoring"
_NAME = "tests"
# Whatever there is, in whatever namespace.
_SPEC = {
    "replicas": 0,
    **{
        f"{kind}{which}Selector": {}
        for kind in ("serviceMonitor", "rule")
        for which in ("", "Namespace")
    },
}
_CUSTOM_RESOURCE = {
    "apiVersion": "monitoring.coreos.com/v1",
    "kind": "Prometheus",
    "metadata": {"name": _NAME, "namespace": NAMESPACE},
}


class Prometheus:
    """A Prometheus, which runs inside a `with` block."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._directory = Path(tempfile.mkdtemp(prefix="prometheus-", dir=node.directory))
        self._kubeconfig = node.user("prometheus", "/O=system:masters/CN=prometheus")
        self._configuration = self._directory / "prometheus.yml"
        self._configuration.write_text("{}")
        self._followed = ""

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        directory = self._directory
        self._program = self._stack.enter_context(
            self._node.program(
                "prometheus",
                f"--config.file={self._configuration}",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address={ADDRESS}:{_PORT}",
            )
        )
        self._program.wait_for("busybox", "wget", "-qO-", f"{URL}/-/ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop it in a `with` block; it keeps its data."""
        self.__exit__()
        yield
        self.__enter__()

    def query(self, text: str) -> list[dict[str, Any]]:
        """What a query of PromQL finds now; see `get`."""
        return list(self.get(f"query?{urlencode({'query': text})}")["result"])

    def follow(self) -> bool:
        """Take over what the operator has written by now; whether it has written anything."""
        node, directory = self._node, self._directory
        try:
            secret = node.kubectl(*_in_json("secret", f"prometheus-{_NAME}"))
            rules = node.kubectl(*_in_json("configmap", f"prometheus-{_NAME}-rulefiles-0"))
        except ProgramError:
            return False
        if secret + rules == self._followed:
            return True
        self._followed = secret + rules
        packed = json.loads(secret)["data"]["prometheus.yaml.gz"]
        text = gzip.decompress(base64.b64decode(packed)).decode()
        for variable in ("$(SHARD)", "$(POD_NAME)"):
            text = text.replace(variable, "0")
        configuration = yaml.safe_load(text)
        for job in configuration["scrape_configs"]:
            for discovery in job["kubernetes_sd_configs"]:
                discovery["kubeconfig_file"] = str(self._kubeconfig)
        for name, content in (json.loads(rules).get("data") or {}).items():
            (directory / name).write_text(content)
        configuration |= {"rule_files": [f"{directory}/*.yaml"]}
        configuration.pop("alerting", None)
        self._configuration.write_text(yaml.safe_dump(configuration))
        self._program.signal(signal.SIGHUP)
        return True

    def get(self, path: str) -> Any:
        """What its HTTP API has under `/api/v1/`.

        Raises:
            ProgramError: it does not answer, or refuses.
        """
        text = self._node.namespaces.run("busybox", "wget", "-qO-", f"{URL}/api/v1/{path}")
        return json.loads(text)["data"]


def _in_json(kind: str, name: str) -> list[str]:
    return ["--namespace", NAMESPACE, "get", kind, name, "--output=json"]


@contextlib.contextmanager
def running(node: Node, interval: str = "30s") -> Iterator[Prometheus]:
    """Scrape and evaluate what `follow` finds; definitions of the resources must be there.

    Args:
        node: that it runs beside.
        interval: from one evaluation of a rule to the next, where its group has none.
    """
    client = node.authority.issue("prometheus-operator", "/O=system:masters/CN=prometheus-operator")
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    wanted = _CUSTOM_RESOURCE | {"spec": _SPEC | {"evaluationInterval": interval}}
    items = {"apiVersion": "v1", "kind": "List", "items": [namespace, wanted]}
    node.kubectl("apply", "-f", "-", text=json.dumps(items))
    with (
        node.program(
            "prometheus-operator",
            f"--apiserver={node.api}",
            f"--ca-file={node.authority.certificate}",
            f"--cert-file={client.certificate}",
            f"--key-file={client.key}",
            "--web.enable-tls=false",
            "--web.listen-address=127.0.0.1:8091",
        ),
        Prometheus(node) as prometheus,
    ):
        try:
            yield prometheus
        finally:
            node.kubectl("delete", "namespace", NAMESPACE)
