"""What the figures of a benchmark depend on."""

import os
import platform
import subprocess
import time
from pathlib import Path

import psutil

from loadtest.servers import ROOT


def commit(checkout: Path) -> str:
    """The commit of a checkout, with `-dirty` if files differ from it."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown commit"
    return done.stdout.strip()


def facts(command: str, other: Path | None = None) -> dict[str, str]:
    """The machine, the code and the command, by name.

    Args:
        command: as it was given.
        other: another checkout that takes part.
    """
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "when": time.strftime("%Y-%m-%d %H:%M %Z"),
        "this service": commit(ROOT),
        **({"other version": commit(other)} if other else {}),
        "processor": f"{psutil.cpu_count()} x {model}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "load average before": f"{os.getloadavg()[0]:.2f}",
        "command": command,
    }
