import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from server import patches
from server.patches import PATCHES, apply
from server.torchserve import torchserve_home


@pytest.fixture
def jar() -> Path:
    return torchserve_home() / "ts" / "frontend" / "model-server.jar"


# `batch`: the call is eight bytes in one place. `turns`: two calls in the place of others, a byte
# or two of each, and a log line. `retry`: 502 differs from 500 in the last byte of an operand, and
# from 413 likewise: once at the head of the method, and in each copy of its `finally` and `catch`.
# `direct`: a call with its arguments, and one more.
@pytest.mark.parametrize(
    ("name", "differing", "places"),
    [("batch", 8, 1), ("turns", 3 + 22 + 3, 3), ("retry", 9, 9), ("direct", 19 + 5, 2)],
)
def test_a_patch_changes_its_bytes_and_nothing_else(
    jar: Path, tmp_path: Path, name: str, differing: int, places: int
) -> None:
    before = jar.read_bytes()
    assert apply(jar, tmp_path, [name]) == set()
    assert jar.read_bytes() == before
    patch = PATCHES[name]
    expected = {tmp_path / patch.name}
    if patch.beside:
        expected.add((tmp_path / patch.name).with_name(patch.beside.name))
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == expected
    with zipfile.ZipFile(jar) as archive:
        original = archive.read(patch.name)
    assert sum(original.count(old) for old in patch.replacements) == places
    changed = (tmp_path / patch.name).read_bytes()
    if patch.constants:
        added, end = b"".join(patch.constants), patch.pool_end
        assert changed[end : end + len(added)] == added
        # By which number the replacements call them.
        assert int.from_bytes(original[8:10], "big") == 0x2DD
        assert int.from_bytes(changed[8:10], "big") == 0x2DD + len(patch.constants)
        changed = original[:10] + changed[10:end] + changed[end + len(added) :]
    pairs = zip(original, changed, strict=True)
    assert 0 < sum(a != b for a, b in pairs) <= differing


def test_patches_of_one_class_add_up(jar: Path, tmp_path: Path) -> None:
    assert apply(jar, tmp_path, PATCHES) == set()
    assert apply(jar, tmp_path / "turned", reversed(PATCHES)) == set()
    for patch in PATCHES.values():
        content = (tmp_path / patch.name).read_bytes()
        assert content == (tmp_path / "turned" / patch.name).read_bytes()
        assert all(content.count(old) == 0 for old in patch.replacements)


def test_the_class_beside_is_what_its_source_compiles_to(tmp_path: Path) -> None:
    compiler = shutil.which("javac")
    version = compiler and subprocess.check_output([compiler, "-version"], text=True)
    if not version or not version.startswith("javac 17."):
        pytest.skip("needs javac 17: other compilers may write other bytes")
    source = patches.TURNS.with_suffix(".java")
    command = source.read_text().splitlines()[0].removeprefix("// ").split()
    subprocess.run([*command[:-1], str(source)], cwd=tmp_path, check=True)
    (compiled,) = tmp_path.rglob("*.class")
    assert compiled.read_bytes() == patches.TURNS.read_bytes()


def test_another_torchserve_is_left_alone(tmp_path: Path) -> None:
    jar = tmp_path / "model-server.jar"
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr(PATCHES["batch"].name, b"another")
    assert apply(jar, tmp_path / "classes", PATCHES) == PATCHES.keys()
    assert not (tmp_path / "classes").exists()
