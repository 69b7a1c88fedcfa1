"""The cgroup that a node's pods are in."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def cgroup(name: str) -> Iterator[None]:
    """A cgroup of this name, in each hierarchy where there are several; removed at the end.

    The processes in it have ended by then.
    """
    unified = (_ROOT / "cgroup.controllers").exists()
    parents = [_ROOT] if unified else [path for path in _ROOT.iterdir() if path.is_dir()]
    for parent in parents:
        (parent / name).mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):
            # Version 1 gives a new cpuset neither, and nothing can run in it.
            if not unified and (parent / file).exists():
                (parent / name / file).write_text((parent / file).read_text())
    try:
        yield
    finally:
        for parent in parents:
            _remove(parent / name)


def _remove(directory: Path) -> None:
    for path in sorted(directory.rglob("*/"), key=lambda path: -len(path.parts)):
        _rmdir(path)
    _rmdir(directory)


def _rmdir(path: Path) -> None:
    # The kernel lets a process go a moment after it has ended.
    deadline = time.monotonic() + 10
    while path.is_dir():
        try:
            path.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
