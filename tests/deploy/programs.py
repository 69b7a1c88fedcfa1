"""The programs of others that these tests run: kubectl, promtool, podman and their kind."""

import os
from typing import NoReturn

import pytest

from deploy.manifests import find_program


def program(name: str) -> str:
    """The path of a program; without it the test is skipped, or fails where it could be had.

    `DEPLOY_TESTS=required` says that it could: continuous integration sets it.
    """
    path = find_program(name)
    if path is None:
        unavailable(f"{name} is not installed (`make deploy-tools` says what is)")
    return path


def unavailable(reason: str) -> NoReturn:
    """Skip the test, or fail it where continuous integration demands it."""
    if os.environ.get("DEPLOY_TESTS") == "required":
        pytest.fail(reason)
    pytest.skip(reason)
