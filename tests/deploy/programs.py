"""External programs that these tests run: kubectl, promtool, podman and others."""

import os
from typing import NoReturn

import pytest

from deploy.manifests import find_program


def program(name: str) -> str:
    """The path of a program; without it the test is skipped.

    With `DEPLOY_TESTS=required`, as in continuous integration, the test fails instead.
    """
    path = find_program(name)
    if path is None:
        unavailable(f"{name} is not installed (`make deploy-tools` says what is)")
    return path


def unavailable(reason: str) -> NoReturn:
    """Skip the test, or fail it with `DEPLOY_TESTS=required`."""
    if os.environ.get("DEPLOY_TESTS") == "required":
        pytest.fail(reason)
    pytest.skip(reason)
