"""kube-router beside a node, for its policies alone: it enforces NetworkPolicies."""

from tests.cluster.node import NAME, SERVICES, Node


def start(node: Node) -> None:
    """Start it; a denied connection is refused at once."""
    node.sandbox.start(
        node.binaries / "kube-router",
        f"--kubeconfig={node.client('/O=system:masters/CN=kube-router')}",
        "--run-firewall=true",
        "--run-router=false",
        "--run-service-proxy=false",
        "--run-loadbalancer=false",
        f"--service-cluster-ip-range={SERVICES}",
        f"--hostname-override={NAME}",
    )
