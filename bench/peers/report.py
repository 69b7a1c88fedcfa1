"""Report (stub)."""

from pathlib import Path
from typing import Any


def write(document: dict[str, Any], directory: Path) -> None:
    print(len(document["parts"]))
