"""Clients that others wrote, unmodified, in an environment of their own (`.venv-clients`)."""

import functools
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtest.servers import free_ports
from tests.serving import ROOT, ServerProcess, serving

PYTHON = ROOT / ".venv-clients" / "bin" / "python"
NO_MODEL = "there is no model none; there are: mnist, xor"
NO_VERSION = "model xor has no version 3; there are: 1.0"
SHAPE = "inputs[0].shape: expected [1 to 1024, 28, 28], got [2, 2]"


@pytest.fixture(scope="module")
def results(store: Path) -> Iterator[Callable[[str], Any]]:
    """The results of a client's calls, by its module in `clients`."""
    assert PYTHON.is_file(), "no .venv-clients: `make test` installs it"
    grpc_address = f"127.0.0.1:{free_ports(1)[0]}"
    with serving(store, GRPC_ADDRESS=f"http://{grpc_address}") as server:
        yield functools.cache(functools.partial(run, server, grpc_address))


def run(server: ServerProcess, grpc_address: str, client: str) -> Any:
    addresses = {
        "triton_http": server.inference.removeprefix("http://"),
        "triton_grpc": grpc_address,
        "kserve_rest": server.inference,
        "kserve_grpc": grpc_address,
    }

    command = [str(PYTHON), "-m", f"tests.integration.clients.{client}", addresses[client]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


HEALTH = {
    "triton_http": ("server live", "server ready", "model ready", "version ready"),
    "triton_grpc": ("server live", "server ready", "model ready", "version ready"),
    "kserve_rest": (
        *("v1 server live", "v1 model ready"),
        *("v2 server live", "v2 server ready", "v2 model ready"),
    ),
    "kserve_grpc": ("server live", "server ready", "model ready"),
}


@pytest.mark.parametrize(("client", "call"), [(c, call) for c in HEALTH for call in HEALTH[c]])
def test_health(results: Callable[[str], Any], client: str, call: str) -> None:
    assert results(client)[call] is True


@pytest.mark.parametrize("client", ["triton_http", "triton_grpc"])
def test_metadata(results: Callable[[str], Any], client: str) -> None:
    found = results(client)
    assert found["server metadata"]["name"] == "model-server"
    model = found["model metadata"]
    assert (model["name"], model["versions"]) == ("mnist", ["1.0"])
    tensors = [*model["inputs"], *model["outputs"]]
    assert [(tensor["name"], tensor["datatype"]) for tensor in tensors] == [
        ("input", "UINT8"),
        ("label", "INT64"),
        ("probabilities", "FP32"),
    ]


IMAGES = {
    "triton_http": ("infer images", "infer images in JSON"),
    "triton_grpc": ("infer images",),
    "kserve_rest": ("v2 infer images", "v2 infer images in binary"),
    "kserve_grpc": ("infer images", "infer raw images"),
}


@pytest.mark.parametrize(("client", "call"), [(c, call) for c in IMAGES for call in IMAGES[c]])
def test_inferences(results: Callable[[str], Any], client: str, call: str) -> None:
    images = results(client)[call]
    assert images["id"] == "one"
    assert images["label"] == [1, 1]
    assert [len(row) for row in images["probabilities"]] == [10, 10]
    assert [sum(row) for row in images["probabilities"]] == pytest.approx([1, 1], abs=1e-5)
    numbers = results(client)["v2 infer numbers" if client == "kserve_rest" else "infer numbers"]
    assert numbers["label"] == [1, 0]
    # KServe's REST client loses it.
    assert numbers["model_version"] == ("1.0" if client != "kserve_rest" else None)


def test_v1_predictions(results: Callable[[str], Any]) -> None:
    found = results("kserve_rest")
    for call, labels in (("v1 infer images", [1, 1]), ("v1 infer numbers", [1, 0])):
        assert [each["label"] for each in found[call]["predictions"]] == labels


def test_v1_explanations(results: Callable[[str], Any]) -> None:
    explanations = results("kserve_rest")["v1 explain"]["explanations"]
    assert [each["label"] for each in explanations] == [1, 0]
    assert [each["input"] for each in explanations] == [[0, 1], [1, 1]]
    assert [len(each["attributions"]) for each in explanations] == [2, 2]


def test_the_outputs_that_are_asked_for(results: Callable[[str], Any]) -> None:
    assert results("triton_http")["infer one output"] == ["label"]


@pytest.mark.parametrize(
    ("client", "call", "message"),
    [
        ("triton_http", "no such model", f"[404] {NO_MODEL}"),
        ("triton_http", "no such version", f"[404] {NO_VERSION}"),
        ("triton_http", "infer without a model", f"[404] {NO_MODEL}"),
        ("triton_http", "infer without a version", f"[404] {NO_VERSION}"),
        ("triton_http", "infer another shape", f"[400] {SHAPE}"),
        ("triton_grpc", "no such model ready", f"[StatusCode.NOT_FOUND] {NO_MODEL}"),
        ("triton_grpc", "no such version", f"[StatusCode.NOT_FOUND] {NO_VERSION}"),
        ("triton_grpc", "infer without a model", f"[StatusCode.NOT_FOUND] {NO_MODEL}"),
        ("triton_grpc", "infer another shape", f"[StatusCode.INVALID_ARGUMENT] {SHAPE}"),
        (
            "triton_grpc",
            "infer another datatype",
            "inputs[0].datatype: expected UINT8 or FP32, got 'FP64'",
        ),
        ("kserve_rest", "v1 no such model ready", NO_MODEL),
        ("kserve_rest", "v1 infer without a model", NO_MODEL),
        ("kserve_rest", "v1 infer another shape", "instances[0]: expected 28 rows, got 2"),
        ("kserve_rest", "v2 infer without a model", f"{NO_MODEL}, '404 Not Found'"),
        ("kserve_rest", "v2 infer another shape", f"{SHAPE}, '400 Bad Request'"),
        ("kserve_grpc", "no such model ready", NO_MODEL),
        ("kserve_grpc", "infer another shape", SHAPE),
    ],
)
def test_errors_say_why(
    results: Callable[[str], Any], client: str, call: str, message: str
) -> None:
    assert message in results(client)[call]["error"]


@pytest.mark.parametrize(
    ("client", "call"),
    [
        ("triton_http", "no such model ready"),
        ("triton_http", "no such version ready"),
        ("kserve_rest", "v2 no such model ready"),
    ],
)
def test_a_model_that_there_is_not_is_not_ready(
    results: Callable[[str], Any], client: str, call: str
) -> None:
    assert results(client)[call] is False
