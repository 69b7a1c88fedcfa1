"""The import contracts in pyproject.toml find violations."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.serving import ROOT

FORBIDDEN = [
    ("handler.errors", "training.registry"),
    ("handler.errors", "server.settings"),
    ("handler.errors", "bench.servers"),
    ("training.registry", "handler.batching"),
    ("training.registry", "server.settings"),
    ("server.settings", "handler.batching"),
    ("server.settings", "training.registry"),
    ("loadtest.objectives", "handler.card"),
    ("loadtest.objectives", "server.settings"),
    ("loadtest.objectives", "training.registry"),
    ("deploy.image", "training.registry"),
]


def test_forbidden_imports_are_found(tmp_path: Path) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(text)
    for package in tomllib.loads(text)["tool"]["importlinter"]["root_packages"]:
        shutil.copytree(ROOT / package, tmp_path / package)
    for importer, imported in FORBIDDEN:
        with (tmp_path / importer.replace(".", "/")).with_suffix(".py").open("a") as file:
            file.write(f"\nimport {imported}\n")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    for importer, imported in FORBIDDEN:
        assert f"-   {importer} -> {imported} (l." in done.stdout
