"""CoreDNS beside a node: names of Services."""

from tests.cluster.node import Node
from tests.cluster.sandbox import ADDRESS

_PORT = 5353
_COREFILE = """\
.:{port} {{
    bind {address}
    kubernetes cluster.local {{
        kubeconfig {kubeconfig}
    }}
}}
"""
# Where pods ask (clusterDNS); a Service without a selector, as the program runs beside the node.
_SERVICE = f"""\
apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system}}
spec:
  clusterIP: 10.96.0.10
  ports:
    - {{name: dns, protocol: UDP, port: 53, targetPort: {_PORT}}}
    - {{name: dns-tcp, protocol: TCP, port: 53, targetPort: {_PORT}}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: kube-dns
  namespace: kube-system
  labels: {{kubernetes.io/service-name: kube-dns}}
addressType: IPv4
endpoints:
  - addresses: [{ADDRESS}]
ports:
  - {{name: dns, protocol: UDP, port: {_PORT}}}
  - {{name: dns-tcp, protocol: TCP, port: {_PORT}}}
"""


def start(node: Node) -> None:
    """Start it; pods find names a second later at most."""
    kubeconfig = node.client("/O=system:masters/CN=coredns")
    file = node.directory / "Corefile"
    file.write_text(_COREFILE.format(port=_PORT, address=ADDRESS, kubeconfig=kubeconfig))
    node.sandbox.start(node.binaries / "coredns", "-conf", file)
    node.kubectl("apply", "-f", "-", stdin=_SERVICE)
