"""What the benchmark of growth sends and serves, without a server."""

import json
import zipfile
from pathlib import Path

import pytest

from bench import growth


def test_a_request_of_images_says_how_long_it_is() -> None:
    request = growth.images(3)
    length = int(request.headers["Inference-Header-Content-Length"])
    (tensor,) = json.loads(request.body[:length])["inputs"]
    assert tensor["shape"] == [3, 28, 28]
    rest = len(request.body) - length
    assert rest == tensor["parameters"]["binary_data_size"] == 3 * 28 * 28


def test_versions_differ_in_nothing_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "mnist.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", '{"model": {"modelVersion": "1.0"}}')
        archive.writestr("model.json", '{"version": "1.0", "name": "mnist"}')
        archive.writestr("model.pt", b"weights")
    store = growth.versions(tmp_path, 2, tmp_path / "store")
    for version in ("1.0", "2.0"):
        with zipfile.ZipFile(store / f"mnist-{version}.mar") as archive:
            manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))
            assert manifest["model"]["modelVersion"] == version
            assert json.loads(archive.read("model.json")) == {"version": version, "name": "mnist"}
            assert archive.read("model.pt") == b"weights"


def test_a_store_without_archives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert growth.main(["--model-store", str(tmp_path)]) == 1
    assert "mnist.mar" in capsys.readouterr().err
