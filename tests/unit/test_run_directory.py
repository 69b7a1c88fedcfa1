"""Run directories: made, locked, and swept once their server has ended."""

import os
import tempfile
from pathlib import Path

import pytest

from server.run_directory import RunDirectory, sweep


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_that_of_a_server_that_runs_is_kept() -> None:
    run = RunDirectory()
    assert sweep() == []
    assert run.path.is_dir()
    run.remove()
    assert not run.path.exists()


def test_that_of_a_server_that_was_killed_is_removed() -> None:
    run = RunDirectory()
    (run.path / "store-1").mkdir()
    (run.path / "store-1" / "m.mar").write_bytes(b"large")
    os.close(run._lock)  # as the kernel does
    assert sweep() == [run.path]
    assert not run.path.exists()


def test_what_is_not_a_run_directory_is_kept(temporary: Path) -> None:
    """No lock, a link to elsewhere, a link as the lock, a file."""
    (temporary / "serve-a").mkdir()
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    (temporary / "serve-b").symlink_to(elsewhere)
    (temporary / "serve-c").mkdir()
    (temporary / "serve-c" / "lock").symlink_to(elsewhere / "lock")
    (temporary / "serve-d").touch()
    assert sweep() == []
    assert sorted(path.name for path in temporary.iterdir()) == [
        "elsewhere",
        *(f"serve-{letter}" for letter in "abcd"),
    ]
