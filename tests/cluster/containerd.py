"""containerd with the bridge of CNI, and images in it without a registry."""

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.namespaces import Namespaces, ProgramError

POD_NETWORK = "10.244.0.0/24"
_PAUSE = "localhost/pause:1"
_CONFIGURATION = """\
version = 2
root = "{directory}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
# The sandbox of a build may not lower it, and runc fails where it tries.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{directory}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"""
_NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": POD_NETWORK}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


class Containerd:
    """A containerd that runs; `running` makes one.

    Attributes:
        socket: its address in the namespaces.
    """

    def __init__(self, namespaces: Namespaces, socket: str) -> None:
        self._namespaces, self.socket = namespaces, socket

    def load(self, archive: Path) -> None:
        """Take in the images of an archive as `docker save` makes it."""
        self._ctr("images", "import", str(archive))

    def tag(self, image: str, name: str) -> None:
        """Give an image a further name; both with registry and tag."""
        self._ctr("images", "tag", "--force", image, name)

    def kill(self, container: str) -> None:
        """Kill the first process of a container, and so all of them."""
        self._ctr("tasks", "kill", "--signal=SIGKILL", container)

    def stop_containers(self) -> None:
        """Kill every container, so that no mount of one is left."""
        # A task may end by itself meanwhile, and the namespaces may have ended with all of them.
        with contextlib.suppress(ProgramError):
            for task in self._ctr("tasks", "list", "--quiet").split():
                with contextlib.suppress(ProgramError):
                    self.kill(task)

    def _ctr(self, *arguments: str) -> str:
        options = [f"--address={self.socket}", "--namespace=k8s.io"]
        return self._namespaces.run("ctr", *options, *arguments)


@contextlib.contextmanager
def running(namespaces: Namespaces, directory: Path, pause: Path) -> Iterator[Containerd]:
    """A containerd, with the sandbox image made of the program `pause`."""
    (directory / "cni").mkdir()
    (directory / "cni" / "pods.conflist").write_text(json.dumps(_NETWORK))
    socket = "/run/containerd/containerd.sock"
    file = directory / "containerd.toml"
    file.write_text(_CONFIGURATION.format(directory=directory, socket=socket, pause=_PAUSE))
    containerd = Containerd(namespaces, socket)
    with namespaces.program("containerd", f"--config={file}") as program:
        program.wait_for("ctr", f"--address={socket}", "version")
        archive = directory / "pause.tar"
        write_image(archive, _PAUSE, {"pause": pause}, ["/pause"])
        containerd.load(archive)
        yield containerd


def write_image(archive: Path, tag: str, files: dict[str, Path], command: list[str]) -> None:
    """Write an image of some files as `docker save` does: one layer, a configuration, a list."""
    with tarfile.open(archive, "w") as image:
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as content:
            for name, file in files.items():
                content.add(file, name)
        configuration = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": command, "Env": ["PATH=/bin"]},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"],
            },
        }
        contents = [{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]
        for name, data in (
            ("layer.tar", layer.getvalue()),
            ("config.json", json.dumps(configuration).encode()),
            ("manifest.json", json.dumps(contents).encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            image.addfile(member, io.BytesIO(data))
