"""Add-on: CoreDNS beside the node, for names of Services."""

import contextlib
from collections.abc import Iterator

from tests.cluster.node import ADDRESS, DNS, Node, Port

_PORT = 5353
_COREFILE = """\
.:{port} {{
    bind {address}
    errors
    kubernetes cluster.local {{
        kubeconfig {kubeconfig}
    }}
}}
"""


@contextlib.contextmanager
def running(node: Node) -> Iterator[None]:
    """Answer for cluster.local where pods ask."""
    file = node.directory / "Corefile"
    kubeconfig = node.user("coredns", "/O=system:masters/CN=coredns")
    file.write_text(_COREFILE.format(port=_PORT, address=ADDRESS, kubeconfig=kubeconfig))
    ports = [Port("dns", 53, _PORT, "UDP"), Port("dns-tcp", 53, _PORT)]
    node.expose("kube-dns", "kube-system", ports, address=DNS)
    with node.program("coredns", "-conf", str(file)) as program:
        program.wait_for("busybox", "nslookup", "kubernetes.default.svc.cluster.local", DNS)
        yield
