"""`python -m tests.cluster.node`: a shell beside a Kubernetes cluster of one node.

The node is for tests of the manifests, and for whoever works on them. It needs Linux, root, the
Debian packages that `make deploy-tools` installs, and, in the directory that KUBERNETES_BINARIES
names, static builds of kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy
(Kubernetes 1.36) and pause; add-ons, one a file beside this, need their own. It runs in namespaces
of its own, and leaves nothing behind. No image is pulled: `Containerd.load` takes archives.

None of this is needed where there is a cluster: the tests take any by KUBECONFIG, for instance one
of kind or minikube, once the project's images are in it:

    kind create cluster && kind load docker-image model-server:0.1.0
    KUBECONFIG=~/.kube/config make test-cluster
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.manifests import find_program
from tests.cluster import containerd
from tests.cluster.certificates import Authority, Certificate
from tests.cluster.cgroups import cgroup
from tests.cluster.containerd import Containerd
from tests.cluster.namespaces import Namespaces, Program

NAME = "node1"
ADDRESS = "172.30.0.1"
SERVICES = "10.96.0.0/16"
DNS = "10.96.0.10"
_PODS = "10.244.0.0/16"
_API = f"https://{ADDRESS}:6443"
_ETCD = "http://127.0.0.1:2379"
PROGRAMS = ("etcd", "containerd", "ctr", "runc", "nft", "iptables", "conntrack", "ip", "openssl")


@dataclass(frozen=True)
class Port:
    """A port of a Service, and of the program that it stands for."""

    name: str
    port: int
    target: int
    protocol: str = "TCP"


class Node:
    """A cluster of one node that runs; `running` makes one.

    Attributes:
        directory: for files of it and its add-ons.
        binaries: directory of Kubernetes' programs and those of add-ons.
        namespaces: that it runs in.
        authority: of its certificates.
        containerd: its images and containers.
        kubeconfig: of an administrator.
        api: URL of the API server.
    """

    api = _API

    def __init__(
        self, directory: Path, binaries: Path, namespaces: Namespaces, runtime: Containerd
    ) -> None:
        self.directory, self.binaries = directory, binaries
        self.namespaces, self.containerd = namespaces, runtime
        self.authority = Authority(directory, "ca")
        self.kubeconfig = self.user("admin", "/O=system:masters/CN=admin")

    def user(self, name: str, subject: str) -> Path:
        """A kubeconfig for a user; the subject has its groups (O) and its name (CN)."""
        certificate = self.authority.issue(name, subject)
        file = self.directory / f"{name}.kubeconfig"
        file.write_text(json.dumps(_kubeconfig(self.authority.certificate, certificate)))
        return file

    def program(
        self, name: str, *options: str, **environment: str
    ) -> AbstractContextManager[Program]:
        """One of the programs in `binaries`; it runs inside a `with` block."""
        return self.namespaces.program(str(self.binaries / name), *options, **environment)

    def kubectl(self, *arguments: str, text: str = "") -> str:
        """Run kubectl; return its output.

        Raises:
            ProgramError: it failed.
        """
        return self.namespaces.run(*self.kubectl_command(*arguments), text=text)

    def kubectl_command(self, *arguments: str) -> list[str]:
        """What runs kubectl in the namespaces."""
        kubectl = find_program("kubectl")
        assert kubectl
        options = [f"--kubeconfig={self.kubeconfig}", f"--cache-dir={self.directory / 'kubectl'}"]
        return [kubectl, *options, *arguments]

    def expose(
        self, name: str, namespace: str, ports: Sequence[Port], address: str | None = None
    ) -> None:
        """Make a Service for a program beside the node, so that pods and the API server reach it.

        Args:
            name, namespace: of the Service.
            ports: each with the program's, at the node's address.
            address: of the Service, or None for any.
        """
        metadata = {"name": name, "namespace": namespace}
        labels = {"kubernetes.io/service-name": name}
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {
                "ports": [
                    {"name": p.name, "port": p.port, "targetPort": p.target, "protocol": p.protocol}
                    for p in ports
                ],
                **({"clusterIP": address} if address else {}),
            },
        }
        endpoints = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata | {"labels": labels},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [ADDRESS]}],
            "ports": [{"name": p.name, "port": p.target, "protocol": p.protocol} for p in ports],
        }
        items = {"apiVersion": "v1", "kind": "List", "items": [service, endpoints]}
        self.kubectl("apply", "-f", "-", text=json.dumps(items))


def _kubeconfig(authority: Path, certificate: Certificate) -> dict[str, Any]:
    user = {
        "client-certificate": str(certificate.certificate),
        "client-key": str(certificate.key),
    }
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "node", "cluster": {"server": _API, "certificate-authority": str(authority)}}
        ],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "node", "context": {"cluster": "node", "user": "user"}}],
        "current-context": "node",
    }


@contextlib.contextmanager
def running(binaries: Path) -> Iterator[Node]:
    """A node that is ready.

    Raises:
        ProgramError: a part of it did not start; the message has its last lines.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="node-"))
        stack.callback(shutil.rmtree, directory)
        stack.enter_context(cgroup(directory.name))
        namespaces = stack.enter_context(Namespaces(_setup(directory), directory))
        runtime = stack.enter_context(containerd.running(namespaces, directory, binaries / "pause"))
        node = Node(directory, binaries, namespaces, runtime)
        _control_plane(node, stack)
        _kubelet(node, stack)
        yield node


def _setup(directory: Path) -> list[str]:
    """Commands that prepare the namespaces."""
    etcd = directory / "etcd"
    etcd.mkdir()
    # What programs write at fixed places.
    places = ["/run", "/var/lib", "/var/log", str(etcd)]
    return [
        # containerd's mounts for pods are seen by its children.
        "mount --make-rshared /",
        *(f"mount -t tmpfs tmpfs {place}" for place in places),
        "mkdir /run/lock",
        "ip link set lo up",
        "ip link add node type veth peer name outside",
        f"ip address add {ADDRESS}/24 dev node",
        "ip link set node up",
        "ip link set outside up",
        "ip route add default dev node",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
    ]


def _control_plane(node: Node, stack: contextlib.ExitStack) -> None:
    """Start etcd, kube-apiserver, kube-controller-manager and kube-scheduler."""
    peer = "http://127.0.0.1:2380"
    stack.enter_context(
        node.namespaces.program(
            "etcd",
            f"--data-dir={node.directory / 'etcd' / 'data'}",
            f"--listen-client-urls={_ETCD}",
            f"--advertise-client-urls={_ETCD}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            # A tmpfs keeps nothing anyway.
            "--unsafe-no-fsync",
        )
    )
    authority = node.authority
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
    hosts = [f"DNS:{name}" for name in names]
    hosts += [f"IP:{address}" for address in ("10.96.0.1", ADDRESS, "127.0.0.1")]
    serving = authority.issue("apiserver", "/CN=kube-apiserver", hosts)
    kubelet = authority.issue("apiserver-kubelet", "/O=system:masters/CN=kube-apiserver")
    aggregation = Authority(node.directory, "aggregation-ca")
    proxy = aggregation.issue("aggregation", "/CN=front-proxy")
    accounts = authority.issue("service-accounts", "/CN=service-accounts")
    apiserver = stack.enter_context(
        node.program(
            "kube-apiserver",
            f"--etcd-servers={_ETCD}",
            f"--advertise-address={ADDRESS}",
            f"--service-cluster-ip-range={SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",
            f"--cert-dir={node.directory}",
            f"--client-ca-file={authority.certificate}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--kubelet-certificate-authority={authority.certificate}",
            f"--kubelet-client-certificate={kubelet.certificate}",
            f"--kubelet-client-key={kubelet.key}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={accounts.certificate}",
            f"--service-account-signing-key-file={accounts.key}",
            f"--requestheader-client-ca-file={aggregation.certificate}",
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={proxy.certificate}",
            f"--proxy-client-key-file={proxy.key}",
        )
    )
    ready = node.kubectl_command("get", "--raw=/readyz")
    apiserver.wait_for(*ready)
    manager = node.user("controller-manager", "/CN=system:kube-controller-manager")
    stack.enter_context(
        node.program(
            "kube-controller-manager",
            *_as_user(manager),
            "--allocate-node-cidrs",
            f"--cluster-cidr={_PODS}",
            f"--service-cluster-ip-range={SERVICES}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            f"--root-ca-file={authority.certificate}",
            f"--service-account-private-key-file={accounts.key}",
            f"--cert-dir={node.directory / 'controller-manager'}",
        )
    )
    scheduler = node.user("scheduler", "/CN=system:kube-scheduler")
    stack.enter_context(
        node.program(
            "kube-scheduler",
            *_as_user(scheduler),
            "--leader-elect=false",
            f"--cert-dir={node.directory / 'scheduler'}",
        )
    )


def _as_user(kubeconfig: Path) -> list[str]:
    kinds = ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
    return [f"--{kind}={kubeconfig}" for kind in kinds]


def _kubelet(node: Node, stack: contextlib.ExitStack) -> None:
    """Start kubelet and kube-proxy, and wait until the node is ready."""
    authority, directory = node.authority, node.directory
    serving = authority.issue("kubelet-serving", f"/CN={NAME}", [f"IP:{ADDRESS}"])
    configuration = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(authority.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(serving.certificate),
        "tlsPrivateKeyFile": str(serving.key),
        "containerRuntimeEndpoint": f"unix://{node.containerd.socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{directory.name}",
        "enforceNodeAllocatable": ["pods"],
        # Machines without version 2 alone, and with swap, are good enough for tests.
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS],
        "resolvConf": "",
        # The disk is the machine's, and others fill it.
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "4s",
        "volumePluginDir": str(directory / "volume-plugins"),
    }
    file = directory / "kubelet.yaml"
    file.write_text(json.dumps(configuration))
    kubelet = stack.enter_context(
        node.program(
            "kubelet",
            f"--config={file}",
            f"--kubeconfig={node.user('kubelet', f'/O=system:nodes/CN=system:node:{NAME}')}",
            f"--hostname-override={NAME}",
            f"--node-ip={ADDRESS}",
            f"--root-dir={directory / 'kubelet'}",
            f"--cert-dir={directory}",
        )
    )
    stack.callback(node.containerd.stop_containers)
    proxy = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": _PODS,
        "hostnameOverride": NAME,
        "clientConnection": {"kubeconfig": str(node.user("proxy", "/CN=system:kube-proxy"))},
        # A namespace may not change the machine's limits.
        "conntrack": {"maxPerCore": 0, "min": 0},
    }
    file = directory / "kube-proxy.yaml"
    file.write_text(json.dumps(proxy))
    stack.enter_context(node.program("kube-proxy", f"--config={file}"))
    ready = ["wait", "--for=condition=Ready", f"node/{NAME}", "--timeout=1s"]
    kubelet.wait_for(*node.kubectl_command(*ready))
    # Pods are refused until their namespace's account exists.
    account = node.kubectl_command("get", "serviceaccount", "default")
    kubelet.wait_for(*account)


def missing() -> str:
    """Why a node cannot run here; empty if it can."""
    if os.geteuid():
        return "a node needs root"
    if not (binaries := os.environ.get("KUBERNETES_BINARIES")):
        return "KUBERNETES_BINARIES names no directory of Kubernetes' programs"
    programs = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
    for name in (*programs, "kube-proxy", "pause"):
        if not (Path(binaries) / name).is_file():
            return f"{name} is not in {binaries}"
    for name in PROGRAMS:
        if shutil.which(name) is None:
            return f"{name} is not installed (`make deploy-tools` installs it)"
    return ""


def main(arguments: Sequence[str] = ()) -> int:
    """Run a shell, or the command given, beside a node; return its exit code."""
    if reason := missing():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    from tests.cluster import coredns

    with running(Path(os.environ["KUBERNETES_BINARIES"])) as node, coredns.running(node):
        kubectl = find_program("kubectl")
        assert kubectl
        path = f"{Path(kubectl).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"KUBECONFIG": str(node.kubeconfig), "PATH": path}
        shell = [os.environ.get("SHELL", "/bin/bash")]
        # Another mount namespace begins in its root.
        here = ["sh", "-c", 'cd "$0" && exec "$@"', str(Path.cwd())]
        command = [*node.namespaces.enter(), *here, *(arguments or shell)]
        return subprocess.run(command, check=False, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
