"""300 images of MNIST's test set as PNG files with their labels, `digits.zip`.

    python -m loadtest.digits

makes the file anew from the data that training uses.
"""

import io
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).parent / "digits.zip"
COUNT = 300


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


def main() -> int:
    """Write the file; the same data gives the same bytes."""
    from PIL import Image

    from training.data import MNIST_DIR, mnist

    test = mnist(Path(MNIST_DIR)).test
    with zipfile.ZipFile(FILE, "w") as archive:
        pairs = zip(test.x[:COUNT], test.y[:COUNT].tolist(), strict=True)
        for index, (pixels, label) in enumerate(pairs):
            buffer = io.BytesIO()
            Image.fromarray(pixels.numpy()).save(buffer, "PNG")
            name = zipfile.ZipInfo(f"{index:03}-{label}.png", (1980, 1, 1, 0, 0, 0))
            archive.writestr(name, buffer.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
