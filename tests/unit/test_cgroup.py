"""Memory of a container, from files as the kernel writes them."""

from pathlib import Path

import psutil
import pytest

from server.cgroup import Memory, memory

STAT = "anon 700\nfile 300\ninactive_file 100\nactive_file 200\n"
NO_LIMIT_V1 = str((1 << 63) - 4096)


def cgroup(root: Path, limit: str, version: int) -> Path:
    names = {"max": limit, "current": "1000", "stat": STAT}
    if version == 1:
        root /= "memory"
        root.mkdir()
        # Of this cgroup alone, and then with all below it.
        stat = "inactive_file 0\n" + "".join(f"total_{line}\n" for line in STAT.splitlines())
        names = {"limit_in_bytes": limit, "usage_in_bytes": "1000", "stat": stat}
    for name, text in names.items():
        (root / f"memory.{name}").write_text(f"{text}\n")
    return root


@pytest.mark.parametrize("version", [1, 2])
def test_what_was_not_read_lately_does_not_count(tmp_path: Path, version: int) -> None:
    cgroup(tmp_path, "2048", version)
    assert memory(tmp_path) == Memory(working_set=900, limit=2048)


@pytest.mark.parametrize(("version", "limit"), [(1, NO_LIMIT_V1), (2, "max")])
def test_no_limit(tmp_path: Path, version: int, limit: str) -> None:
    cgroup(tmp_path, limit, version)
    assert memory(tmp_path).limit == psutil.virtual_memory().total


def test_no_cgroup(tmp_path: Path) -> None:
    found = memory(tmp_path)
    assert found.limit == psutil.virtual_memory().total
    assert 0 < found.working_set < found.limit
