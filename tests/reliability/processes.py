"""Finds the processes of a server, while they come and go."""

import contextlib
from collections.abc import Callable

import psutil

from tests.serving import ServerProcess


def named(name: str) -> Callable[[ServerProcess], list[psutil.Process]]:
    def find(server: ServerProcess) -> list[psutil.Process]:
        found = []
        for process in server.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == name:
                    found.append(process)
        return found

    return find


def workers(server: ServerProcess, model: str) -> list[psutil.Process]:
    """Its workers. Their command lines do not name the model, but the files of their metrics do."""
    pids = set()
    for file in server.temporary.glob("serve-*/metrics/gauge_livemax_*.db"):
        with contextlib.suppress(FileNotFoundError):  # it was folded
            if f'"{model}"'.encode() in file.read_bytes():
                pids.add(int(file.stem.rpartition("_")[2]))
    return [p for p in server.family() if p.pid in pids]  # a zombie has no command line
