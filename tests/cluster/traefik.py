"""Add-on: Traefik beside the node, for Ingresses and for the Gateway API."""

import contextlib
import json
from collections.abc import Iterator

from tests.cluster.node import ADDRESS, Node

HTTP, HTTPS = 80, 443
_PING = 8090
_GATEWAY_CLASS = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "GatewayClass",
    "metadata": {"name": "traefik"},
    "spec": {"controllerName": "traefik.io/gateway-controller"},
}


@contextlib.contextmanager
def running(node: Node) -> Iterator[None]:
    """Take requests at the node's address, as routes say; definitions of these must be there."""
    options = [
        f"--entrypoints.web.address={ADDRESS}:{HTTP}",
        f"--entrypoints.websecure.address={ADDRESS}:{HTTPS}",
        # Without it an Ingress with TLS is answered 404.
        "--entrypoints.websecure.http.tls=true",
        f"--entrypoints.ping.address=127.0.0.1:{_PING}",
        "--ping=true",
        "--ping.entrypoint=ping",
        "--providers.kubernetesgateway=true",
        f"--providers.kubernetesgateway.statusaddress.ip={ADDRESS}",
        "--providers.kubernetesingress=true",
        f"--providers.kubernetesingress.ingressendpoint.ip={ADDRESS}",
        "--global.checknewversion=false",
        "--global.sendanonymoususage=false",
        "--log.level=WARN",
    ]
    kubeconfig = node.user("traefik", "/O=system:masters/CN=traefik")
    node.kubectl("apply", "-f", "-", text=json.dumps(_GATEWAY_CLASS))
    with node.program("traefik", *options, KUBECONFIG=str(kubeconfig)) as program:
        program.wait_for("busybox", "wget", "-qO-", f"http://127.0.0.1:{_PING}/ping")
        yield
