"""The directory of one run: sockets, copies of archives, workers' metrics.

A server that is killed cannot remove its own, with the archives' copies in it, so the next start in
the same temporary directory does. Each run holds a lock in its directory; the kernel releases it
with the process, whatever ends that.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

_PREFIX = "serve-"
_LOCK = "lock"


class RunDirectory:
    """A new directory in the temporary directory, locked until it is removed.

    Attributes:
        path: of it.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        unlocked = self.path / f"{_LOCK}.new"
        # Children do not inherit it: none of them can outlive this process and keep the lock.
        self._lock = os.open(unlocked, os.O_CREAT | os.O_RDONLY, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # Under its name only once it is locked, or a start in this moment would take it for dead.
        unlocked.rename(self.path / _LOCK)

    def remove(self) -> None:
        """Remove it with all that is in it, and release the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def sweep() -> list[Path]:
    """Remove this user's run directories whose server has ended, and return them."""
    removed = []
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            state = directory.lstat()
            if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
                continue
            lock = os.open(directory / _LOCK, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: it runs
                shutil.rmtree(directory, ignore_errors=True)
                removed.append(directory)
            finally:
                os.close(lock)
    return removed
