"""A Kubernetes node on this machine, from nothing in seconds: `python -m tests.cluster.node`.

The command starts the node, opens a shell in its namespaces, with `KUBECONFIG` set, and takes all
away again when the shell ends. It needs root on Linux, Debian's packages `etcd-server containerd
runc containernetworking-plugins nftables iptables iproute2 openssl` and, in the directory that
`KUBERNETES_BINARIES` names, static builds of kube-apiserver, kube-controller-manager,
kube-scheduler, kubelet, kube-proxy and pause. Any other cluster, such as kind's or minikube's, is
used through its own `KUBECONFIG`.

Not as on a machine that is only a node: containers run without the kernel's score of who is killed
first when memory ends, as a sandbox may not lower it; and no image is pulled, archives are loaded.
"""

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.manifests import find_program
from tests.cluster.certificates import Authority, key_pair
from tests.cluster.sandbox import ADDRESS, Sandbox, remove_cgroups

NAME = "node1"
PODS, SERVICES = "10.244.0.0/24", "10.96.0.0/16"
SERVER = f"https://{ADDRESS}:6443"
_PROGRAMS = ("etcd", "containerd", "runc", "openssl", "nft", "iptables", "ip", "nsenter", "unshare")
_PLUGINS = Path("/usr/lib/cni")
_PAUSE = "localhost/pause:1"
_CONTAINERD = """\
version = 2
root = "{directory}/containerd"
state = "/run/containerd"
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
# runc could not set up a pod's sandbox: here a process may not lower its oom_score_adj.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{directory}/cni"
"""
_NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "pods0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": PODS}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": "/run/cni",
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


class UnavailableError(Exception):
    """No node can be started here; the message says what is missing."""


class Node:
    """A control plane and a node in namespaces of their own.

    Args:
        binaries: directory of Kubernetes' programs.
        directory: for all files.
        sandbox: running.

    Attributes:
        authority: of every certificate in the cluster.
        kubeconfig: of an administrator.
        sandbox: where the node's programs run, and those beside it.
    """

    def __init__(self, binaries: Path, directory: Path, sandbox: Sandbox) -> None:
        self.binaries, self.directory, self.sandbox = binaries, directory, sandbox
        self.authority = Authority(directory, "cluster")
        self._aggregation = Authority(directory, "aggregation")
        self.kubeconfig = self.client("/O=system:masters/CN=admin")
        self._kubectl = (kubectl(), f"--kubeconfig={self.kubeconfig}")

    def client(self, subject: str) -> Path:
        """Make a kubeconfig for a subject such as `/CN=system:kube-proxy`."""
        name = subject.rpartition("=")[2].replace(":", "-")
        certificate, key = self.authority.issue(name, subject)
        file = self.directory / f"{name}.kubeconfig"
        user = {"client-certificate-data": _encoded(certificate), "client-key-data": _encoded(key)}
        cluster = {
            "server": SERVER,
            "certificate-authority-data": _encoded(self.authority.certificate),
        }
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "node", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "node", "context": {"cluster": "node", "user": name}}],
            "current-context": "node",
        }
        file.write_text(json.dumps(document))
        return file

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl inside, and return what it printed.

        Raises:
            RuntimeError: it failed; the message is what it printed.
        """
        return self.sandbox.run(*self._kubectl, *arguments, stdin=stdin)

    def load(self, archive: Path) -> None:
        """Load an image from an archive in docker's format."""
        self.sandbox.run(*_CTR, "import", archive)

    def start(self) -> None:
        """Start everything, and wait until the node is ready for pods."""
        self._start_control_plane()
        self._start_containerd()
        self._start_kubelet()
        self._start_proxy()
        wait_for = self.sandbox.wait_for
        wait_for(*self._kubectl, "wait", "--for=condition=Ready", "--timeout=5s", f"node/{NAME}")
        # Pods are refused until their namespace has its account.
        wait_for(*self._kubectl, "get", "serviceaccount", "default")

    def _start_control_plane(self) -> None:
        start, directory = self.sandbox.start, self.directory
        start(
            "etcd", f"--data-dir={directory}/etcd", "--unsafe-no-fsync",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
        )  # fmt: skip
        names = ("kubernetes.default.svc", "localhost")
        addresses = ("10.96.0.1", ADDRESS, "127.0.0.1")
        certificate, key = self.authority.issue(
            "apiserver",
            "/CN=kube-apiserver",
            *(f"DNS:{name}" for name in names),
            *(f"IP:{address}" for address in addresses),
        )
        to_kubelet = self.authority.issue("to-kubelet", "/O=system:masters/CN=kube-apiserver")
        proxy = self._aggregation.issue("proxy", "/CN=front-proxy")
        signing, public = key_pair(directory, "service-accounts")
        authority = self.authority.certificate
        start(
            self.binaries / "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={ADDRESS}",
            f"--service-cluster-ip-range={SERVICES}",
            f"--client-ca-file={authority}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={public}",
            f"--service-account-signing-key-file={signing}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-certificate-authority={authority}",
            f"--kubelet-client-certificate={to_kubelet[0]}",
            f"--kubelet-client-key={to_kubelet[1]}",
            f"--requestheader-client-ca-file={self._aggregation.certificate}",
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={proxy[0]}",
            f"--proxy-client-key-file={proxy[1]}",
        )
        self.sandbox.wait_for(*self._kubectl, "get", "--raw=/readyz")
        start(
            self.binaries / "kube-controller-manager",
            f"--kubeconfig={self.client('/CN=system:kube-controller-manager')}",
            "--leader-elect=false",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={signing}",
            f"--root-ca-file={authority}",
            f"--cluster-signing-cert-file={authority}",
            f"--cluster-signing-key-file={authority.with_suffix('.key')}",
            "--allocate-node-cidrs",
            "--cluster-cidr=10.244.0.0/16",
        )
        scheduler = self.client("/CN=system:kube-scheduler")
        start(self.binaries / "kube-scheduler", f"--kubeconfig={scheduler}", "--leader-elect=false")

    def _start_containerd(self) -> None:
        networks = self.directory / "cni"
        networks.mkdir()
        (networks / "pods.conflist").write_text(json.dumps(_NETWORK))
        file = self.directory / "containerd.toml"
        text = _CONTAINERD.format(directory=self.directory, pause=_PAUSE, plugins=_PLUGINS)
        file.write_text(text)
        self.sandbox.start("containerd", f"--config={file}")
        archive = self.directory / "pause.tar"
        _write_image(archive, _PAUSE, self.binaries / "pause")
        self.sandbox.wait_for(*_CTR, "import", archive)

    def _start_kubelet(self) -> None:
        certificate, key = self.authority.issue(
            "kubelet", f"/CN={NAME}", f"DNS:{NAME}", f"IP:{ADDRESS}"
        )
        file = self.directory / "kubelet.json"
        configuration = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.authority.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": ["pods"],
            "podLogsDir": str(self.directory / "logs"),
            "resolvConf": "",
            "clusterDNS": ["10.96.0.10"],
            "clusterDomain": "cluster.local",
            "nodeStatusUpdateFrequency": "4s",
            # A disk that others have filled, and images that no registry could bring back.
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
        }
        file.write_text(json.dumps(configuration))
        self.sandbox.start(
            self.binaries / "kubelet",
            f"--config={file}",
            f"--kubeconfig={self.client(f'/O=system:nodes/CN=system:node:{NAME}')}",
            f"--hostname-override={NAME}",
            f"--node-ip={ADDRESS}",
            f"--root-dir={self.directory}/kubelet",
            f"--cert-dir={self.directory}/kubelet-certificates",
        )

    def _start_proxy(self) -> None:
        file = self.directory / "proxy.json"
        configuration = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": "10.244.0.0/16",
            "clientConnection": {"kubeconfig": str(self.client("/CN=system:kube-proxy"))},
            # It may not set the kernel's limits here.
            "conntrack": {"maxPerCore": 0, "min": 0},
        }
        file.write_text(json.dumps(configuration))
        self.sandbox.start(
            self.binaries / "kube-proxy", f"--config={file}", f"--hostname-override={NAME}"
        )


_CTR = ("ctr", "--address=/run/containerd/containerd.sock", "--namespace=k8s.io", "images")


def kubectl() -> str:
    """The path of kubectl.

    Raises:
        UnavailableError: it is not installed.
    """
    found = find_program("kubectl")
    if found is None:
        raise UnavailableError("kubectl is not installed: run `make manifests`")
    return found


def _encoded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def _write_image(archive: Path, tag: str, program: Path) -> None:
    """Write an image, in docker's format, that has nothing but a program."""
    layer = archive.with_suffix(".layer")
    with tarfile.open(layer, "w") as tar:
        tar.add(program, arcname=program.name)
    configuration = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"]},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(layer.read_bytes()).hexdigest()}"],
        },
    }
    manifest = [{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as tar:
        tar.add(layer, arcname="layer.tar")
        for name, document in (("config.json", configuration), ("manifest.json", manifest)):
            content = json.dumps(document).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def binaries() -> Path:
    """The directory of Kubernetes' programs.

    Raises:
        UnavailableError: there is none, or something else that a node needs is missing.
    """
    named = os.environ.get("KUBERNETES_BINARIES")
    if not named:
        raise UnavailableError("neither KUBECONFIG nor KUBERNETES_BINARIES is set")
    if os.geteuid():
        raise UnavailableError("a node needs root")
    kubectl()
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    missing += [] if _PLUGINS.is_dir() else ["containernetworking-plugins"]
    if missing:
        raise UnavailableError(f"not installed: {' '.join(missing)} (`make deploy-tools`)")
    return Path(named).absolute()


@contextmanager
def running() -> Iterator[Node]:
    """A node, until the `with` block ends; then nothing of it is left.

    Raises:
        UnavailableError: it cannot be started here.
    """
    programs = binaries()
    with tempfile.TemporaryDirectory(prefix="node-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        try:
            with Sandbox(directory) as sandbox:
                node = Node(programs, directory, sandbox)
                node.start()
                yield node
        finally:
            remove_cgroups("kubepods")


def main() -> int:
    """Run a shell, or a command, in a node's namespaces; 0, or 1 if it cannot be started."""
    try:
        with running() as node:
            print(f"{NAME} is ready; leave the shell to remove it")
            command = sys.argv[1:] or [os.environ.get("SHELL", "sh")]
            path = f"{Path(kubectl()).parent}{os.pathsep}{os.environ['PATH']}"
            own = {"KUBECONFIG": str(node.kubeconfig), "PATH": path}
            return subprocess.run(
                node.sandbox.command(*command), check=False, env=os.environ | own
            ).returncode
    except UnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
