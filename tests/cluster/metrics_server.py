"""Add-on: metrics-server beside the node, for `kubectl top` and HorizontalPodAutoscalers."""

import base64
import contextlib
import json
from collections.abc import Iterator

from tests.cluster.node import ADDRESS, Node, Port

_NAME, _NAMESPACE, _PORT = "metrics-server", "kube-system", 4443
_API = "v1beta1.metrics.k8s.io"


@contextlib.contextmanager
def running(node: Node) -> Iterator[None]:
    """Serve the CPU and memory of nodes and containers, from ten seconds on after they started."""
    user = node.user(_NAME, f"/O=system:masters/CN={_NAME}")
    hosts = [f"DNS:{_NAME}.{_NAMESPACE}.svc"]
    certificate = node.authority.issue(f"{_NAME}-serving", f"/CN={_NAME}", hosts)
    options = [
        *(f"--{kind}kubeconfig={user}" for kind in ("", "authentication-", "authorization-")),
        f"--bind-address={ADDRESS}",
        f"--secure-port={_PORT}",
        f"--tls-cert-file={certificate.certificate}",
        f"--tls-private-key-file={certificate.key}",
        f"--kubelet-certificate-authority={node.authority.certificate}",
        "--kubelet-preferred-address-types=InternalIP",
        # The shortest that it takes, with the longest wait for the kubelet that goes with it.
        "--metric-resolution=10s",
        "--kubelet-request-timeout=5s",
    ]
    node.expose(_NAME, _NAMESPACE, [Port("https", 443, _PORT)])
    with node.program(_NAME, *options) as program:
        authority = base64.b64encode(node.authority.certificate.read_bytes()).decode()
        node.kubectl(
            "apply", "-f", "-", text=json.dumps(api_service(authority, _NAME, _NAMESPACE, _API))
        )
        available = ("--for=condition=Available", f"apiservice/{_API}")
        try:
            program.wait_for(*node.kubectl_command("wait", *available, "--timeout=1s"))
            yield
        finally:
            # No namespace could be removed while an API group does not answer.
            node.kubectl("delete", "apiservice", _API)


def api_service(authority: str, name: str, namespace: str, api: str) -> dict[str, object]:
    """The resource that has the API server pass an API on to a Service.

    Args:
        authority: of the Service's certificate, in base64.
        name, namespace: of the Service.
        api: version and group, as in `v1beta1.metrics.k8s.io`.
    """
    version, _, group = api.partition(".")
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": api},
        "spec": {
            "group": group,
            "version": version,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "caBundle": authority,
            "service": {"name": name, "namespace": namespace},
        },
    }
