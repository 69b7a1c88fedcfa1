"""Add-on: KEDA beside the node, which scales as ScaledObjects say."""

import base64
import contextlib
import json
import shutil
from collections.abc import Iterator

from tests.cluster.metrics_server import api_service
from tests.cluster.node import ADDRESS, Node, Port

_NAMESPACE = "keda"
_GRPC, _ADAPTER, _WEBHOOKS = 9666, 6444, 9443
_API = "v1beta1.external.metrics.k8s.io"


@contextlib.contextmanager
def running(node: Node) -> Iterator[None]:
    """Scale, and refuse what cannot be scaled; definitions of the resources must be there."""
    environment = {
        "KUBECONFIG": str(node.user("keda", "/O=system:masters/CN=keda")),
        "POD_NAMESPACE": _NAMESPACE,
        "WATCH_NAMESPACE": "",
        "KEDA_CLUSTER_OBJECT_NAMESPACE": _NAMESPACE,
    }
    certificates = node.directory / "keda"
    certificates.mkdir()
    names = [f"DNS:{name}.{_NAMESPACE}.svc" for name in ("keda-operator", "keda-metrics-apiserver")]
    issued = node.authority.issue("keda-serving", "/CN=keda", [*names, f"IP:{ADDRESS}"])
    for file, name in (
        (node.authority.certificate, "ca.crt"),
        (issued.certificate, "tls.crt"),
        (issued.key, "tls.key"),
    ):
        shutil.copy(file, certificates / name)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE}}
    authority = base64.b64encode(node.authority.certificate.read_bytes()).decode()
    node.kubectl("apply", "-f", "-", text=json.dumps(namespace))
    node.expose("keda-metrics-apiserver", _NAMESPACE, [Port("https", 443, _ADAPTER)])
    kubeconfig = environment["KUBECONFIG"]
    with contextlib.ExitStack() as stack:
        start = stack.enter_context
        operator = start(
            node.program(
                "keda-operator",
                f"--cert-dir={certificates}",
                f"--metrics-service-bind-address={ADDRESS}:{_GRPC}",
                "--metrics-bind-address=127.0.0.1:8092",
                "--health-probe-bind-address=127.0.0.1:8093",
                "--enable-cert-rotation=false",
                "--leader-elect=false",
                **environment,
            )
        )
        adapter = start(
            node.program(
                "keda-adapter",
                *(f"--{k}kubeconfig={kubeconfig}" for k in ("lister-", "authentication-")),
                f"--authorization-kubeconfig={kubeconfig}",
                f"--bind-address={ADDRESS}",
                f"--secure-port={_ADAPTER}",
                "--port=8094",
                f"--tls-cert-file={certificates}/tls.crt",
                f"--tls-private-key-file={certificates}/tls.key",
                f"--cert-dir={certificates}",
                f"--metrics-service-address={ADDRESS}:{_GRPC}",
                f"--metrics-service-grpc-authority=keda-operator.{_NAMESPACE}.svc",
                **environment,
            )
        )
        webhooks = start(
            node.program(
                "keda-webhooks",
                f"--cert-dir={certificates}",
                f"--port={_WEBHOOKS}",
                "--metrics-bind-address=127.0.0.1:8095",
                "--health-probe-bind-address=127.0.0.1:8096",
                **environment,
            )
        )
        for program, port in ((operator, 8093), (webhooks, 8096)):
            program.wait_for("busybox", "wget", "-qO-", f"http://127.0.0.1:{port}/healthz")
        documents = [
            api_service(authority, "keda-metrics-apiserver", _NAMESPACE, _API),
            _webhook(authority),
        ]
        items = {"apiVersion": "v1", "kind": "List", "items": documents}
        node.kubectl("apply", "-f", "-", text=json.dumps(items))
        stack.callback(
            node.kubectl, "delete", f"apiservice/{_API}", "validatingwebhookconfiguration/keda"
        )
        available = ("--for=condition=Available", f"apiservice/{_API}", "--timeout=1s")
        adapter.wait_for(*node.kubectl_command("wait", *available))
        yield


def _webhook(authority: str) -> dict[str, object]:
    """Who is asked before a ScaledObject is stored."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "keda"},
        "webhooks": [
            {
                "name": "scaledobjects.keda.sh",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "clientConfig": {
                    "url": f"https://{ADDRESS}:{_WEBHOOKS}/validate-keda-sh-v1alpha1-scaledobject",
                    "caBundle": authority,
                },
                "rules": [
                    {
                        "apiGroups": ["keda.sh"],
                        "apiVersions": ["*"],
                        "operations": ["CREATE", "UPDATE"],
                        "resources": ["scaledobjects"],
                    }
                ],
            }
        ],
    }
