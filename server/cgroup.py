"""Memory that is left, as the kernel counts it: of a container, or else of the machine."""

from pathlib import Path
from typing import NamedTuple

import psutil

# Where a container sees its own cgroup. On a machine without one this is the root of all, which has
# no limit.
_ROOT = Path("/sys/fs/cgroup")
# Version 1 writes a page less than 2**63 where there is no limit.
_NO_LIMIT = 1 << 60


class Memory(NamedTuple):
    """Bytes.

    Attributes:
        working_set: what is in use and cannot be dropped, as the kubelet counts it: without files
            that were not read lately.
        limit: beyond it the kernel kills.
    """

    working_set: int
    limit: int


def memory(root: Path = _ROOT) -> Memory:
    """Of this container if it has a limit, else of the machine.

    Args:
        root: where cgroups are mounted, of either version.
    """
    machine = psutil.virtual_memory()
    whole = Memory(machine.total - machine.available, machine.total)
    v1 = root / "memory"
    directory, limit_name, usage_name, inactive_name = (
        (v1, "limit_in_bytes", "usage_in_bytes", "total_inactive_file")
        if v1.is_dir()
        else (root, "max", "current", "inactive_file")
    )
    try:
        limit = (directory / f"memory.{limit_name}").read_text().strip()
        usage = int((directory / f"memory.{usage_name}").read_text())
        stat = (directory / "memory.stat").read_text().split()
    except OSError:
        return whole
    if limit == "max" or int(limit) > _NO_LIMIT:
        return whole
    inactive = int(stat[stat.index(inactive_name) + 1])
    return Memory(max(0, usage - inactive), int(limit))
