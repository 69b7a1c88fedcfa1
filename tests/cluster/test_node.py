"""The tests' own node leaves nothing behind."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from loadtest.servers import wait_until
from tests.cluster.cgroups import cgroup
from tests.cluster.node import missing, running
from tests.serving import ROOT


@pytest.fixture
def binaries() -> Path:
    if not (named := os.environ.get("KUBERNETES_BINARIES")):
        pytest.skip("KUBERNETES_BINARIES is not set")
    if reason := missing():
        pytest.fail(reason)
    return Path(named)


def processes(directory: str) -> list[psutil.Process]:
    """Those with a file of the node on their command line."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if directory in " ".join(process.info["cmdline"] or [])
    ]


def test_no_process_no_file_and_no_cgroup_is_left(binaries: Path) -> None:
    with running(binaries) as node:
        assert "node1" in node.kubectl("get", "nodes")
        directory = node.directory
        assert len(processes(str(directory))) >= 5
        assert list(Path("/sys/fs/cgroup").glob(f"**/{directory.name}"))
    assert not processes(str(directory))
    assert not directory.exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{directory.name}"))


@pytest.mark.usefixtures("binaries")
def test_the_kernel_ends_the_node_of_a_killed_process() -> None:
    command = [sys.executable, "-m", "tests.cluster.node", "sh", "-c", "echo $KUBECONFIG; cat"]
    # Not pytest's tmp_path: in it the kubelet's sockets would have paths of over 107 characters.
    with tempfile.TemporaryDirectory() as temporary:
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"TMPDIR": temporary},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout
            directory = str(Path(process.stdout.readline().strip()).parent)
            assert len(processes(directory)) >= 5
            process.kill()
        wait_until(lambda: not processes(directory))
        # Cgroups outlive their processes.
        with cgroup(Path(directory).name):
            pass
