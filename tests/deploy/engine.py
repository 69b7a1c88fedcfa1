"""Podman for the tests: its configuration, and the base image."""

import contextlib
import json
import os
import subprocess
import sys
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.deploy.programs import program, unavailable

BASE = "localhost/debian:bookworm-test"
_CONFIGURATION = """\
[containers]
# None: podman would ask for more than a virtual machine may have.
default_ulimits = []
[engine]
# Debian's crun does not start where cgroups are hybrid.
runtime = "runc"
# No systemd is needed.
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
_PIP_SETTINGS = ("cert", "constraint", "extra-index-url", "find-links", "index-url")


def podman(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run podman, with standard error in standard output."""
    done = subprocess.run(
        [program("podman"), *arguments],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert not check or done.returncode == 0, f"podman {' '.join(arguments)}:\n{done.stdout}"
    return done


def inspect(kind: str, name: str) -> dict[str, Any]:
    (found,) = json.loads(podman(kind, "inspect", name).stdout)
    return dict(found)


@contextlib.contextmanager
def engine(directory: Path) -> Iterator[None]:
    """Configure podman to run containers on this machine, with `BASE` in its store."""
    for name in ("podman", "runc", "debootstrap"):
        program(name)
    if os.geteuid():
        unavailable("debootstrap, and addresses for containers, need root")
    file = directory / "containers.conf"
    file.write_text(_CONFIGURATION)
    before = os.environ.get("CONTAINERS_CONF")
    os.environ["CONTAINERS_CONF"] = str(file)
    try:
        _make_base(directory)
        trial = podman("run", "--rm", BASE, "true", check=False)
        if trial.returncode:
            unavailable(f"podman cannot run a container here: {trial.stdout}")
        yield
    finally:
        del os.environ["CONTAINERS_CONF"]
        os.environ |= {"CONTAINERS_CONF": before} if before else {}


def _make_base(directory: Path) -> None:
    """Make Debian from its packages: image registries cannot be reached from everywhere.

    It stays in podman's store for the next run, as the layers of a build do.
    """
    if podman("image", "exists", BASE, check=False).returncode == 0:
        return
    root, archive = directory / "debian", directory / "debian.tar"
    commands = [
        [program("debootstrap"), "--variant=minbase", "bookworm", str(root)],
        ["tar", "-C", str(root), "-cf", str(archive), "."],
        ["rm", "-r", str(root)],
    ]
    for command in commands:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            unavailable(f"no base image: {command[0]}: {done.stdout[-500:]}{done.stderr[-500:]}")
    podman("import", str(archive), BASE)
    archive.unlink()


def pip_options(directory: Path) -> list[str]:
    """Build options with which pip finds packages where it finds them on this machine.

    Its configuration becomes one file, and the paths in it mounts. Without a configuration there
    are no options, and the build is as it is everywhere.
    """
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    settings: dict[str, str] = {}
    # The environment last, as it takes precedence.
    for line in sorted(lines, key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = literal_eval(value)
    settings = {key: value for key, value in settings.items() if key in _PIP_SETTINGS}
    if not settings:
        return []
    wheels = [Path(part.removeprefix("file://")) for part in settings.get("find-links", "").split()]
    mounts = {}
    for key, value in settings.items():
        for path in (Path(part.removeprefix("file://")) for part in value.split()):
            if path.exists():
                # An index is beside its files.
                shared = path.parent if key.endswith("index-url") else path
                mounts[shared] = shared
    if "cert" in settings:
        # Not at its own path, where the build installs certificates.
        mounts[Path(settings["cert"])] = Path("/mnt/pip-ca.crt")
        settings["cert"] = "/mnt/pip-ca.crt"
    file = directory / "pip.conf"
    lines = [f"{key} = {value}" for key, value in settings.items()]
    file.write_text("\n".join(["[global]", *lines, ""]))
    mounts[file] = Path("/etc/pip.conf")
    options = [part for here, there in mounts.items() for part in ("-v", f"{here}:{there}:ro")]
    if any(list(place.glob("torch-*.whl")) for place in wheels):
        # The CPU wheel is there, and pip prefers it to the index's.
        options += ["--build-arg", "TORCH_INDEX=https://pypi.org/simple"]
    return options
