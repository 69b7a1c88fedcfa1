"""Namespaces for network, mounts and processes, which end with all that is in them."""

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import psutil

from loadtest.servers import wait_until


class ProgramError(Exception):
    """A program ended, or a command failed; the message has its last lines."""


class Namespaces:
    """Namespaces for network, mounts and processes. They live inside a `with` block.

    Their first process reads from a pipe that this process holds: when this process ends, however
    it does, so does that one, and with it the kernel ends every process in the namespaces, every
    mount and every network device.

    Args:
        setup: shell commands for the first process, before anything else runs.
        logs: directory for a file `PROGRAM.log` of each program.
    """

    def __init__(self, setup: Sequence[str], logs: Path) -> None:
        self._setup, self._logs = setup, logs

    def __enter__(self) -> Self:
        script = " && ".join([*self._setup, "echo ready", "exec cat"])
        command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command += ["--propagation=private", "sh", "-c", script]
        log = self._logs / "namespaces.log"
        with log.open("wb") as errors:
            self._unshare = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        assert self._unshare.stdout
        if self._unshare.stdout.readline() != b"ready\n":
            self._close()
            raise ProgramError(f"no namespaces: {log.read_text()}")
        (first,) = psutil.Process(self._unshare.pid).children()
        self._first = first.pid
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        process = self._unshare
        assert process.stdin
        assert process.stdout
        process.stdin.close()
        process.stdout.close()
        process.wait(60)

    def enter(self, *kinds: str) -> list[str]:
        """What goes before a command for it to run in some of the namespaces, or in all."""
        kinds = kinds or ("net", "mount", "pid")
        return ["nsenter", f"--target={self._first}", *(f"--{kind}" for kind in kinds), "--"]

    def run(self, *command: str, text: str = "") -> str:
        """Run a command to its end; return its output.

        Raises:
            ProgramError: it failed.
        """
        done = subprocess.run(
            [*self.enter(), *command], check=False, input=text, capture_output=True, text=True
        )
        if done.returncode:
            raise ProgramError(f"{shlex.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    @contextlib.contextmanager
    def program(self, *command: str, **environment: str) -> Iterator["Program"]:
        """A program that runs inside a `with` block, and then gets SIGTERM."""
        log = self._logs / f"{Path(command[0]).name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*self.enter(), *command],
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        program = Program(process, log, self)
        try:
            yield program
        finally:
            program.stop()


class Program:
    """A program in namespaces.

    Attributes:
        log: file of its output.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, namespaces: Namespaces) -> None:
        self._process, self.log, self._namespaces = process, log, namespaces

    def wait_for(self, *command: str, timeout: float = 90.0) -> None:
        """Wait until a command in the namespaces succeeds.

        Raises:
            ProgramError: the program ended meanwhile.
            TimeoutError: the command went on failing.
        """

        def succeeds() -> bool:
            if self._process.poll() is not None:
                raise ProgramError(f"{self.log.stem} ended:\n{self.log.read_text()[-3000:]}")
            try:
                self._namespaces.run(*command)
            except ProgramError:
                return False
            return True

        try:
            wait_until(succeeds, timeout)
        except TimeoutError:
            print(self.log.read_text()[-3000:])
            raise

    def signal(self, number: int) -> None:
        """Send it a signal."""
        # `nsenter` runs it as its child, and passes no signal on.
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._process.pid).children():
                child.send_signal(number)

    def stop(self, timeout: float = 20.0) -> None:
        """End it by SIGTERM, and after so many seconds by SIGKILL."""
        self.signal(signal.SIGTERM)
        started = time.monotonic()
        while self._process.poll() is None and time.monotonic() < started + timeout:
            time.sleep(0.02)
        self.signal(signal.SIGKILL)
        self._process.wait()
