"""The images, built once for all tests that run them."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.image import TARGETS, Build
from tests.checkout import copy_repository
from tests.deploy.containers import image_of
from tests.deploy.engine import BASE, engine, inspect, pip_options, podman
from tests.deploy.figures import recorded
from tests.deploy.programs import program
from training.registry import MODELS


@pytest.fixture(scope="session")
def figures(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """Measurements of the tests, written to image-test.json."""
    yield from recorded("image-test.json", request, tmp_path_factory)


@pytest.fixture(scope="session")
def build_options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Options of builds on this machine. Podman is set up while this fixture lives."""
    program("kubectl")
    directory = tmp_path_factory.mktemp("engine")
    with engine(directory):
        yield ["--network=host", f"--build-arg=BASE_IMAGE={BASE}", *pip_options(directory)]


@pytest.fixture(scope="session")
def build_context(
    build_options: list[str], store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A copy of the repository as it is now, with current archives."""
    assert build_options  # without podman nothing needs to be trained
    copied = tmp_path_factory.mktemp("context")
    copy_repository(copied)
    for model in MODELS:
        shutil.copy2(store / f"{model}.mar", copied / "model_store")
    return copied


@pytest.fixture(scope="session")
def images(
    build_options: list[str], build_context: Path, figures: dict[str, Any]
) -> dict[str, str]:
    """Tags by target of the images, all built."""
    built = {target: image_of(name) for target, name in TARGETS.items()}
    for target, tag in built.items():
        earlier = podman("images", "--quiet", "--no-trunc", tag).stdout.strip()
        start = time.monotonic()
        Build(
            engine=program("podman"),
            tag=tag,
            target=target,
            context=build_context,
            options=build_options,
        ).run()
        figures[f"{target}_build_seconds"] = time.monotonic() - start
        image = inspect("image", tag)
        figures[f"{target}_megabytes"] = image["Size"] / 1e6
        if earlier and not earlier.endswith(image["Id"]):
            # The new image has taken its tag, and nothing else would remove it.
            podman("rmi", earlier)
    return built
