import zipfile
from pathlib import Path

import pytest

from server.patches import PATCHES, apply
from server.torchserve import torchserve_home


@pytest.fixture
def jar() -> Path:
    return torchserve_home() / "ts" / "frontend" / "model-server.jar"


# The call is eight bytes in one place; 502 differs from 500 in the last byte of an operand, and
# from 413 likewise: once at the head of the method, and in each copy of its `finally` and `catch`.
@pytest.mark.parametrize(("name", "differing", "places"), [("batch", 8, 1), ("retry", 9, 9)])
def test_a_patch_changes_its_bytes_and_nothing_else(
    jar: Path, tmp_path: Path, name: str, differing: int, places: int
) -> None:
    before = jar.read_bytes()
    assert apply(jar, tmp_path, [name]) == set()
    assert jar.read_bytes() == before
    (changed,) = (file for file in tmp_path.rglob("*") if file.is_file())
    assert changed == tmp_path / PATCHES[name].name
    with zipfile.ZipFile(jar) as archive:
        original = archive.read(PATCHES[name].name)
    occurrences = sum(original.count(old) for old in PATCHES[name].replacements)
    assert occurrences == places
    pairs = zip(original, changed.read_bytes(), strict=True)
    assert sum(a != b for a, b in pairs) <= differing


def test_another_torchserve_is_left_alone(tmp_path: Path) -> None:
    jar = tmp_path / "model-server.jar"
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr(PATCHES["batch"].name, b"another")
    assert apply(jar, tmp_path / "classes", PATCHES) == {"batch", "retry"}
    assert not (tmp_path / "classes").exists()
