"""300 images of MNIST's test set as PNG files with their labels, `digits.zip`.

`python -m training.digits` makes the file.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).parent / "digits.zip"


@dataclass(frozen=True)
class Digit:
    """One image, 28x28 8-bit gray PNG, and the digit that it shows."""

    png: bytes
    label: int


def load() -> list[Digit]:
    """All of them, in the test set's order."""
    with zipfile.ZipFile(FILE) as archive:
        return [
            Digit(archive.read(name), int(Path(name).stem.rpartition("-")[2]))
            for name in archive.namelist()
        ]
