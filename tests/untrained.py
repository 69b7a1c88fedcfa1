"""Unpacked archives with an untrained network, which is all that a handler needs."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from handler.batching import BatchHandler
from handler.card import CARD_FILE, TORCHSCRIPT_FILE, ModelCard
from handler.metrics import Metrics
from training.export import ServedModel, to_torchscript
from training.registry import load_recipe


def served_model(name: str, architecture: str | None = None) -> ServedModel:
    recipe = load_recipe(name)
    chosen = recipe.architectures[architecture or recipe.default]
    return ServedModel(recipe.normalise, chosen.build(chosen.settings)).eval()


def make_card(name: str, torchscript: bytes = b"", **changes: Any) -> ModelCard:
    recipe = load_recipe(name)
    fields: dict[str, Any] = {
        "name": name,
        "version": "1.0",
        "architecture": "none",
        "classes": recipe.classes,
        "input_shape": recipe.input_shape,
        "input_bounds": recipe.input_bounds,
        "normalisation": recipe.normalisation,
        "data_sha256": "",
        "source_sha256": "",
        "seed": 0,
        "libraries": {},
        "git_commit": "",
        "metrics": {},
        "torchscript_sha256": hashlib.sha256(torchscript).hexdigest(),
        "example": {},
        "example_label": 0,
    }
    return ModelCard(**(fields | changes))


class Context:
    """The part of TorchServe's context that a handler uses."""

    def __init__(self, directory: Path, size: int = 0) -> None:
        self.system_properties: dict[str, Any] = {"model_dir": str(directory), "gpu_id": None}
        self.codes = [200] * size
        self.content_types = [""] * size
        self.response_headers: list[dict[str, str]] = [{} for _ in range(size)]
        self.headers = [
            {"Host": "localhost", "X-Request-Id": f"id-{index}"} for index in range(size)
        ]

    def get_all_request_header(self, index: int) -> dict[str, str]:
        return self.headers[index]

    def set_response_status(self, code: int, phrase: str, index: int) -> None:
        assert phrase
        self.codes[index] = code

    def set_response_header(self, index: int, key: str, value: str) -> None:
        self.response_headers[index][key] = value

    def set_response_content_type(self, index: int, value: str) -> None:
        self.content_types[index] = value


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> CollectorRegistry:
    """A registry of handlers' metrics, in place of the process-wide one."""
    registry = CollectorRegistry()
    monkeypatch.setattr("handler.batching.Metrics", partial(Metrics, registry=registry))
    return registry


@pytest.fixture
def loaded(
    tmp_path: Path, registry: CollectorRegistry
) -> Callable[[type[BatchHandler], str], BatchHandler]:
    """Make handlers that have loaded an untrained network of the named model."""

    def load(handler_type: type[BatchHandler], name: str) -> BatchHandler:
        torch.manual_seed(0)
        example = torch.zeros(3, *load_recipe(name).input_shape)
        content = to_torchscript(served_model(name), example)
        (tmp_path / TORCHSCRIPT_FILE).write_bytes(content)
        (tmp_path / CARD_FILE).write_text(make_card(name, content).to_json())
        handler = handler_type()
        handler.initialize(Context(tmp_path))
        assert (
            registry.get_sample_value(
                "inference_instances_total", {"model": name, "version": "1.0"}
            )
            == 0
        )
        return handler

    return load
