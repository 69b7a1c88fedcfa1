"""Measurements of tests."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving import ROOT


def recorded(
    file: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """A fixture's body: figures by name, which are printed and written to `artifacts`."""
    found: dict[str, Any] = {}
    yield found
    text = json.dumps(found, indent=2)
    (ROOT / "artifacts").mkdir(exist_ok=True)
    for directory in (ROOT / "artifacts", tmp_path_factory.mktemp("figures")):
        (directory / file).write_text(text)
    line = ", ".join(
        f"{name} {value:.5g}" if isinstance(value, float | int) else f"{name} {value}"
        for name, value in found.items()
    )
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{line}")
