"""Fixtures that all tests share: real data, trained models, a running server."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import ROOT, ServerProcess, serving
from training.data import MNIST_DIR, Data
from training.mnist_data import mnist
from training.registry import MODELS

pytest_plugins = ["tests.deploy.builds", "tests.untrained"]


@pytest.fixture(scope="session")
def mnist_data() -> Data:
    return mnist(ROOT / MNIST_DIR)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with all models, made as a user would make it.

    What the present training code trained before is packed again, with the handler code of now.
    """
    directory = tmp_path_factory.mktemp("store")
    for command in (["train", "--quick"], ["pack", "--out", str(directory)]):
        subprocess.run([sys.executable, "-m", "training", *command], cwd=ROOT, check=True)
    return directory


@pytest.fixture(scope="session")
def server(store: Path) -> Iterator[ServerProcess]:
    """One server with both models, and the workers that a user gets, for all tests that leave it
    as it was.
    """
    with serving(store, *MODELS, TS_DEFAULT_WORKERS_PER_MODEL="2") as running:
        yield running
