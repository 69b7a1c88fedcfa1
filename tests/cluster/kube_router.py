"""Add-on: kube-router beside the node, for its firewall alone, which enforces NetworkPolicies."""

import contextlib
from collections.abc import Iterator

from tests.cluster.node import ADDRESS, NAME, SERVICES, Node

_HEALTH = 20244


@contextlib.contextmanager
def running(node: Node) -> Iterator[None]:
    """Refuse what no policy allows."""
    options = [
        f"--kubeconfig={node.user('kube-router', '/O=system:masters/CN=kube-router')}",
        "--run-firewall=true",
        "--run-router=false",
        "--run-service-proxy=false",
        "--run-loadbalancer=false",
        f"--service-cluster-ip-range={SERVICES}",
        f"--hostname-override={NAME}",
        f"--health-port={_HEALTH}",
    ]
    with node.program("kube-router", *options) as program:
        program.wait_for("busybox", "wget", "-qO-", f"http://{ADDRESS}:{_HEALTH}/healthz")
        yield
