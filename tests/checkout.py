"""Copies of this repository: what git tracks, and what it would."""

import shutil
import subprocess
from pathlib import Path

from tests.serving import ROOT


def copy_repository(directory: Path) -> None:
    """Copy every file that git does not ignore, as it is now, into a directory."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():  # else deleted, and not yet committed
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name)
