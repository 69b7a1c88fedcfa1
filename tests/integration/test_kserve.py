"""The same requests to this service and to KServe's own model server: statuses and forms agree."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from loadtest.servers import Server, free_ports
from tests.integration.test_clients import PYTHON
from tests.serving import serving

INPUT = {"name": "input", "shape": [2, 2], "datatype": "FP32", "data": [0, 1, 1, 1]}
V1, V2 = {"instances": [[0, 1], [1, 1]]}, {"id": "one", "inputs": [INPUT]}
REQUESTS: dict[str, tuple[str, Any]] = {
    "live, V1": ("/", None),
    "live": ("/v2/health/live", None),
    "ready": ("/v2/health/ready", None),
    "server": ("/v2", None),
    "model, V1": ("/v1/models/xor", None),
    "model": ("/v2/models/xor", None),
    "model ready": ("/v2/models/xor/ready", None),
    "predict": ("/v1/models/xor:predict", V1),
    "infer": ("/v2/models/xor/infer", V2),
    "no model, V1": ("/v1/models/none", None),
    "no model": ("/v2/models/none", None),
    "predict without a model": ("/v1/models/none:predict", V1),
    "infer without a model": ("/v2/models/none/infer", V2),
    "predict nothing": ("/v1/models/xor:predict", {}),
    "infer nothing": ("/v2/models/xor/infer", {}),
    "predict no JSON": ("/v1/models/xor:predict", "{"),
    "infer no JSON": ("/v2/models/xor/infer", "{"),
}
# Statuses that differ, this service's first. Bad input is the client's error here.
STATUSES = {
    "predict nothing": (400, 500),
    "infer nothing": (400, 422),
    "infer no JSON": (400, 422),
}


@dataclass(frozen=True)
class Answer:
    """A status, and the names and types in the JSON, or the content type of anything else."""

    status: int
    form: Any


def form(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: form(each) for name, each in sorted(value.items())}
    if isinstance(value, list):
        return [form(value[0])] if value else []
    return "number" if isinstance(value, int | float) else type(value).__name__


def ask(server: Server, path: str, body: Any) -> Answer:
    url = f"{server.inference}{path}"
    if body is None:
        found = requests.get(url, timeout=30)
    else:
        text = body if isinstance(body, str) else json.dumps(body)
        headers = {"Content-Type": "application/json"}
        found = requests.post(url, text, headers=headers, timeout=30)
    kind = found.headers.get("Content-Type", "").partition(";")[0]
    return Answer(found.status_code, form(found.json()) if kind == "application/json" else kind)


@pytest.fixture(scope="module")
def both(store: Path) -> Iterator[tuple[Server, Server]]:
    assert PYTHON.is_file(), "no .venv-clients: `make test` installs it"
    port = str(free_ports(1)[0])
    command = [str(PYTHON), "-m", "tests.integration.clients.kserve_server", port]
    url = f"http://127.0.0.1:{port}"
    with (
        serving(store, "xor") as own,
        Server(command, url, f"{url}/v2/models/xor/ready") as other,
    ):
        yield own, other


def contains(own: Any, other: Any) -> bool:
    """Whether a form has all that the other has, but for what is null there."""
    if isinstance(other, dict):
        return isinstance(own, dict) and all(
            each == "NoneType" or (name in own and contains(own[name], each))
            for name, each in other.items()
        )
    if isinstance(other, list):
        return isinstance(own, list) and all(map(contains, own, other))
    return bool(own == other)


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_agree(both: tuple[Server, Server], name: str) -> None:
    own, other = (ask(server, *REQUESTS[name]) for server in both)
    assert (own.status, other.status) == STATUSES.get(name, (other.status, other.status))
    if own.status < 400:
        assert contains(own.form, other.form), (own.form, other.form)
    else:
        # Under V1 and /predictions errors have TorchServe's form, with a `message`.
        text = "error" if REQUESTS[name][0].startswith("/v2") else "message"
        assert own.form[text] == "str"
