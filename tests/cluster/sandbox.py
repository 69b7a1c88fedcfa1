"""Linux namespaces of a node's own: its network, mounts and processes, which end together."""

import os
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import IO, Self

from loadtest.servers import wait_until

ADDRESS = "172.30.0.1"
# Mounts must be shared, or containerd cannot mount pods' sandboxes. One end of a veth pair holds
# the node's address, as not every kernel has dummy devices.
_SET_UP = f"""
mount --make-rshared /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
ip link set lo up
ip link add node0 type veth peer name node1
ip address add {ADDRESS}/24 dev node0
ip link set node0 up
ip link set node1 up
ip route add default dev node0
sysctl -qw net.ipv4.ip_forward=1
test ! -e /proc/sys/net/bridge || sysctl -qw net.bridge.bridge-nf-call-iptables=1
echo ready
exec sleep infinity
"""


class Sandbox:
    """Namespaces in which programs run; at the end of its `with` block they are all killed.

    Args:
        directory: for the programs' logs.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        # The kernel kills every process of a process namespace whose first process has ended.
        flags = ["--net", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child"]
        command = ["unshare", *flags, "--mount-proc", "sh", "-ec", _SET_UP]
        self._holder = subprocess.Popen(
            command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            assert self._holder.stdout
            line = self._holder.stdout.readline()
            assert line == b"ready\n", f"no namespaces: {line!r}"
            children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
            self._first = int(children.read_text())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.send_signal(signal.SIGKILL)
        self._holder.wait()
        for process in self.processes.values():
            # nsenter ends with its child; killed before, it would leave a zombie.
            process.wait()

    def command(self, *command: str | Path) -> list[str]:
        """A command that runs another inside."""
        return [
            "nsenter",
            f"--target={self._first}",
            "--net",
            "--mount",
            "--pid",
            *map(str, command),
        ]

    def run(self, *command: str | Path, stdin: str | None = None) -> str:
        """Run a command inside until it ends, and return what it printed.

        Raises:
            RuntimeError: it failed; the message is what it printed.
        """
        done = subprocess.run(
            self.command(*command),
            input=stdin,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}:\n{done.stdout}")
        return done.stdout

    def start(self, *command: str | Path, **environment: str) -> subprocess.Popen[bytes]:
        """Start a program inside; its output goes to a log with its name."""
        name = Path(command[0]).name
        log: IO[bytes]
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                self.command(*command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def wait_for(self, *command: str | Path, timeout: float = 60) -> str:
        """Run a command inside until it succeeds, while every program started runs.

        Raises:
            RuntimeError: a program has ended; the message is the end of its log.
            TimeoutError: the command did not succeed in time.
        """

        def succeeds() -> str:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    log = (self.directory / f"{name}.log").read_text()
                    raise RuntimeError(f"{name} ended: {log[-2000:]}")
            try:
                return self.run(*command) or " "
            except RuntimeError as error:
                failures[:] = [error]
                return ""

        failures: list[RuntimeError] = []
        try:
            return wait_until(succeeds, timeout)
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {failures}") from None


def remove_cgroups(name: str) -> None:
    """Remove the control groups of this name, and those in them, deepest first."""
    root = Path("/sys/fs/cgroup")
    is_unified = (root / "cgroup.controllers").is_file()
    for parent in [root] if is_unified else filter(Path.is_dir, root.iterdir()):
        inner = (path for path in (parent / name).rglob("*") if path.is_dir())
        for path in [*sorted(inner, key=lambda path: -len(path.parts)), parent / name]:
            # A killed process stays in its group until it has been reaped.
            wait_until(partial(_is_removed, path), timeout=10)


def _is_removed(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
