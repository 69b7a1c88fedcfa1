"""Fixtures that every room of the tests shares: real data, trained models, a running server."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.store import StoreError
from tests.serving import ROOT, ServerProcess, serving
from training.archive import is_current, source_sha256
from training.data import MNIST_DIR, Data, mnist
from training.registry import RECIPES


@pytest.fixture(scope="session")
def mnist_data() -> Data:
    return mnist(ROOT / MNIST_DIR)


@pytest.fixture(scope="session")
def store() -> Path:
    """A model store with both models, trained as a user would train them.

    What was trained before, by `make train` or by an earlier run, is used as long as it was made
    with the code and pins that are here now.
    """
    names = list(RECIPES)
    digest = hashlib.sha256("".join(source_sha256(name) for name in names).encode()).hexdigest()
    cached = ROOT / ".cache" / "models" / digest[:16]
    for candidate in (ROOT / "model_store", cached):
        if all(_is_current(candidate, name) for name in names):
            return candidate
    command = [sys.executable, "-m", "training", "all", "--out", str(cached)]
    subprocess.run(command, cwd=ROOT, check=True)
    return cached


def _is_current(store: Path, name: str) -> bool:
    try:
        return is_current(store / f"{name}.mar", name)
    except StoreError:
        return False


@pytest.fixture(scope="session")
def server(store: Path) -> Iterator[ServerProcess]:
    """One server with both models, and the workers that a user gets, for all tests that leave it
    as it was.
    """
    with serving(store, *RECIPES, TS_DEFAULT_WORKERS_PER_MODEL="2") as running:
        yield running
