"""Pods of the rendered manifests, as containers of podman on this machine.

A pod's template is translated to options of `podman run`: image, command, environment, user,
capabilities, read-only root, no new privileges, seccomp profile, memory limit, volumes, probes,
preStop hook and termination grace period. Each pod has its own address on podman's bridge. An
unknown field is an error.

Not covered is what only a cluster shows: the kubelet (it probes, restarts and evicts; here the
tests request the probes' paths), its refusal of root where `runAsNonRoot` is set, service accounts,
NetworkPolicies, scheduling and spreading, requests and limits of disk space, names by DNS (here
lines of /etc/hosts), and a Service in the kernel (here tests.deploy.traffic.Service).
"""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import requests
from prometheus_client.parser import text_string_to_metric_families

from loadtest.servers import wait_until
from tests.deploy.engine import inspect, podman
from tests.deploy.resources import Document, containers, ports

# For each part of a template: fields that are translated, and fields that only a cluster honours.
_FIELDS = {
    "pod": (
        "containers initContainers securityContext terminationGracePeriodSeconds volumes",
        """affinity automountServiceAccountToken enableServiceLinks restartPolicy serviceAccountName
        topologySpreadConstraints""",
    ),
    "pod's securityContext": (
        "fsGroup runAsGroup runAsUser seccompProfile",
        "fsGroupChangePolicy runAsNonRoot",
    ),
    "container": (
        """args command env image lifecycle livenessProbe name ports readinessProbe resources
        securityContext startupProbe volumeMounts""",
        "",
    ),
    "securityContext": ("allowPrivilegeEscalation capabilities readOnlyRootFilesystem", ""),
    "capabilities": ("drop", ""),
    "resources": ("limits", "requests"),
    "limits": ("memory", "ephemeral-storage"),
    "env": ("name value", ""),
    "lifecycle": ("preStop", ""),
    "preStop": ("exec", ""),
    "probe": ("httpGet", "failureThreshold periodSeconds timeoutSeconds"),
    "httpGet": ("path port", ""),
    "volumeMount": ("mountPath name readOnly subPath", ""),
    "configMap": ("name", ""),
    "secret": ("secretName", ""),
    "persistentVolumeClaim": ("claimName", "readOnly"),
    "emptyDir": ("medium sizeLimit", ""),
}


class UntranslatedError(Exception):
    """A template has a field that this module does not translate."""


def _known(part: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    translated, left = _FIELDS.get(part, ("", ""))
    if unknown := fields.keys() - {*translated.split(), *left.split()}:
        raise UntranslatedError(f"{part}: {', '.join(sorted(unknown))}")
    return fields


class Pod:
    """A pod of one container and its init containers. It runs inside a `with` block.

    Args:
        template: of a workload.
        directory: for its volumes on disk, not shared with other pods.
        sources: directories in place of ConfigMaps, Secrets and claims, by name.
        hosts: addresses by name, in place of the cluster's DNS.
    """

    def __init__(
        self,
        template: Document,
        directory: Path,
        sources: Mapping[str, Path],
        hosts: Mapping[str, str],
    ) -> None:
        self._spec = _known("pod", template["spec"])
        self._ports = ports(template)
        self._volumes = {
            volume["name"]: self._volume(volume, directory, sources)
            for volume in self._spec.get("volumes", [])
        }
        self._hosts = hosts
        self._containers = {container["name"]: container for container in containers(template)}
        (self._main,) = self._spec["containers"]
        self.id = self.ip = ""

    def _volume(self, volume: Document, directory: Path, sources: Mapping[str, Path]) -> Path | str:
        """A directory to mount, or the options of a tmpfs."""
        ((kind, fields),) = ((key, value) for key, value in volume.items() if key != "name")
        _known(kind, fields)
        if kind != "emptyDir":
            (name,) = (fields[key] for key in ("name", "secretName", "claimName") if key in fields)
            return sources[name]
        if fields.get("medium") == "Memory":
            return f"size={_bytes(fields['sizeLimit'])},mode=1777"
        path = directory / str(volume["name"])
        path.mkdir()
        path.chmod(0o777)
        return path

    def options(self, name: str) -> list[str]:
        """Options of `podman run`, up to the image and its arguments."""
        container = _known("container", self._containers[name])
        pod = _known("pod's securityContext", self._spec["securityContext"])
        own = _known("securityContext", container["securityContext"])
        options = ["--no-healthcheck", "--network=podman", "--pull=never"]
        options += [f"--user={pod['runAsUser']}:{pod['runAsGroup']}"]
        options += [f"--group-add={pod['fsGroup']}"]
        if pod["seccompProfile"] != {"type": "RuntimeDefault"}:
            raise UntranslatedError(f"seccompProfile: {pod['seccompProfile']}")
        dropped = _known("capabilities", own["capabilities"])["drop"]
        options += [f"--cap-drop={capability}" for capability in dropped]
        if not own["allowPrivilegeEscalation"]:
            options += ["--security-opt=no-new-privileges"]
        if own["readOnlyRootFilesystem"]:
            options += ["--read-only", "--read-only-tmpfs=false"]
        limits = _known("limits", _known("resources", container["resources"])["limits"])
        # The limit with swap is the same, so there is no swap.
        options += [f"--{key}={_bytes(limits['memory'])}" for key in ("memory", "memory-swap")]
        for variable in container.get("env", []):
            options += [f"--env={_known('env', variable)['name']}={variable['value']}"]
        for mount in container["volumeMounts"]:
            source = self._volumes[_known("volumeMount", mount)["name"]]
            access = "ro" if mount.get("readOnly") else "rw"
            where = mount["mountPath"]
            tmpfs = f"--tmpfs={where}:{source},{access}"
            source = source / mount.get("subPath", "") if isinstance(source, Path) else source
            options += [f"-v={source}:{where}:{access}" if isinstance(source, Path) else tmpfs]
        options += [f"--add-host={host}:{address}" for host, address in self._hosts.items()]
        if "command" in container:
            options += [f"--entrypoint={json.dumps(container['command'])}"]
        return options

    def run(self, name: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`podman run` one of its containers; without options, until it ends."""
        container = self._containers[name]
        image = image_of(container["image"])
        command = ["run", *(options or ["--rm"]), *self.options(name), image]
        return podman(*command, *container.get("args", []), check=check)

    def __enter__(self) -> Self:
        for container in self._spec.get("initContainers", []):
            self.run(container["name"])
        self.id = self.run(self._main["name"], "--detach").stdout.strip()
        network = inspect("container", self.id)["NetworkSettings"]["Networks"]["podman"]
        self.ip, self.gateway = network["IPAddress"], network["Gateway"]
        return self

    def __exit__(self, *error: object) -> None:
        if any(error):
            print(self.log)
        podman("rm", "--force", "--time=0", self.id)

    @property
    def log(self) -> str:
        return podman("logs", self.id).stdout

    def url(self, port: str) -> str:
        return f"http://{self.ip}:{self._ports[port]}"

    def probe(self, kind: str) -> int:
        """Status of a probe's response; 0 without one."""
        get = _known("httpGet", _known("probe", self._main[f"{kind}Probe"])["httpGet"])
        try:
            return requests.get(f"{self.url(get['port'])}{get['path']}", timeout=5).status_code
        except requests.RequestException:
            return 0

    def wait_until_ready(self) -> Self:
        def is_ready() -> bool:
            assert inspect("container", self.id)["State"]["Running"], self.log
            return self.probe("readiness") == 200

        wait_until(is_ready, timeout=180)
        return self

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        text = requests.get(f"{self.url('telemetry')}/metrics", timeout=30).text
        found = [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert found, f"{name} {labels}"
        return sum(found)

    def execute(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return podman("exec", self.id, *command, check=check)

    def stop(self) -> int:
        """Stop it as the kubelet does: preStop hook, SIGTERM, and SIGKILL after the grace period.

        Returns:
            Its exit code.
        """
        lifecycle = _known("lifecycle", self._main.get("lifecycle", {}))
        if hook := lifecycle.get("preStop"):
            self.execute(*_known("preStop", hook)["exec"]["command"])
        podman("stop", f"--time={self._spec.get('terminationGracePeriodSeconds', 30)}", self.id)
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended by itself; return its exit code."""
        return int(podman("wait", self.id).stdout)


def image_of(reference: str) -> str:
    """The tag that the tests build for an image of the manifests."""
    return f"localhost/{reference.rpartition('/')[2].partition(':')[0]}:test"


def _bytes(quantity: str) -> int:
    """Bytes in a quantity such as 256Mi."""
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    return int(quantity[:-2]) * units[quantity[-2:]]
