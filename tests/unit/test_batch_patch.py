import zipfile
from pathlib import Path

import pytest

from server.batch_patch import without_wait
from server.torchserve import torchserve_home

CLASS = "org/pytorch/serve/wlm/Model.class"


@pytest.fixture
def jar() -> Path:
    return torchserve_home() / "ts" / "frontend" / "model-server.jar"


def test_one_call_is_changed_and_nothing_else(jar: Path, tmp_path: Path) -> None:
    before = jar.read_bytes()
    assert without_wait(jar, tmp_path)
    assert jar.read_bytes() == before
    (changed,) = (file for file in tmp_path.rglob("*") if file.is_file())
    assert changed == tmp_path / CLASS
    with zipfile.ZipFile(jar) as archive:
        original = archive.read(CLASS)
    pairs = zip(original, changed.read_bytes(), strict=True)
    differing = [index for index, (a, b) in enumerate(pairs) if a != b]
    assert len(differing) <= 8
    assert differing[-1] - differing[0] < 8


def test_another_torchserve_is_left_alone(tmp_path: Path) -> None:
    jar = tmp_path / "model-server.jar"
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr(CLASS, b"another")
    assert not without_wait(jar, tmp_path / "classes")
    assert not (tmp_path / "classes").exists()
