"""Writes the load test's sample digits: 300 images of MNIST's test set as PNG files.

    python -m training.digits

The same data gives the same bytes.
"""

import io
import sys
import zipfile
from pathlib import Path

from PIL import Image

from training.data import MNIST_DIR
from training.mnist_data import mnist
from training.sources import ROOT

COUNT = 300


def write(file: Path, data_directory: Path) -> None:
    """Write a zip file of PNG files named `{index}-{label}.png`, in the test set's order."""
    test = mnist(data_directory).test
    with zipfile.ZipFile(file, "w") as archive:
        pairs = zip(test.x[:COUNT], test.y[:COUNT].tolist(), strict=True)
        for index, (pixels, label) in enumerate(pairs):
            buffer = io.BytesIO()
            Image.fromarray(pixels.numpy()).save(buffer, "PNG")
            name = zipfile.ZipInfo(f"{index:03}-{label}.png", (1980, 1, 1, 0, 0, 0))
            archive.writestr(name, buffer.getvalue())


def main() -> int:
    """Write the file that the load test reads."""
    write(ROOT / "loadtest" / "digits.zip", MNIST_DIR)
    return 0


if __name__ == "__main__":
    sys.exit(main())
