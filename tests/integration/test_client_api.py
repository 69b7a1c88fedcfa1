"""Metadata and health of both protocols through the door, against the real server."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import requests

from loadtest.servers import wait_until
from tests.archives import DYING_HANDLER, SLOW_HANDLER, foreign
from tests.serving import ServerProcess, serving

READY = ("/v2/models/{}/ready", "/v2/models/{}/versions/1.0/ready", "/v1/models/{}")


def get(server: ServerProcess, path: str, **options: Any) -> requests.Response:
    return requests.get(server.inference + path, timeout=60, **options)


def test_the_readiness_of_a_model_is_its_own(tmp_path: Path) -> None:
    foreign(tmp_path, "dying", DYING_HANDLER)
    foreign(tmp_path, "well", SLOW_HANDLER.format(seconds=0))
    with serving(tmp_path, REQUEST_TIMEOUT_SECONDS="1") as server:

        def statuses(model: str) -> set[int]:
            return {get(server, path.format(model)).status_code for path in READY}

        assert statuses("dying") == statuses("well") == {200}
        # It kills its worker, and the one retry waits for another, which cannot be loaded.
        assert requests.post(server.url("dying"), data=b"x", timeout=60).status_code == 504
        wait_until(lambda: statuses("dying") == {503})
        document = get(server, "/v2/models/dying/ready").json()
        assert (document["name"], document["ready"]) == ("dying", False)
        assert document["reason"]
        assert statuses("well") == {200}
        assert get(server, "/v2/health/ready").status_code == 503
        assert get(server, "/v2/health/live").json() == {"live": True}
        assert requests.post(server.url("well"), data=b"x", timeout=60).text == "x"


def test_versions(tmp_path: Path) -> None:
    for version in ("2.0", "10.0"):
        archive = foreign(tmp_path, "m", SLOW_HANDLER.format(seconds=0), version=version)
        archive.rename(tmp_path / f"m-{version}.mar")
    with serving(tmp_path) as server:
        for path in ("/v2/models/m", "/v2/models/m/versions/2.0"):
            document = get(server, path).json()
            assert document["versions"] == ["10.0", "2.0"]
            assert document["platform"] == "torchserve_mar"
        assert get(server, "/v1/models").json() == {"models": ["m"]}
        paths = get(server, "/openapi.json").json()["paths"]
        assert {"/predictions/m", "/predictions/m/10.0", "/predictions/m/2.0"} <= set(paths)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/predictions/xor", "POST, PUT"),
        ("GET", "/explanations/xor", "POST"),
        ("PUT", "/explanations/xor", "POST"),
        ("GET", "/v1/models/xor:predict", "POST"),
        ("GET", "/v2/models/xor/infer", "POST"),
        ("PUT", "/v2/models/xor/infer", "POST"),
        ("POST", "/v2/models/xor", "GET, HEAD"),
        ("DELETE", "/v1/models/xor", "GET, HEAD"),
        ("POST", "/v2", "GET, HEAD"),
        ("POST", "/", "GET, HEAD"),
        ("POST", "/docs", "GET, HEAD"),
    ],
)
def test_methods(server: ServerProcess, method: str, path: str, allow: str) -> None:
    response = requests.request(method, server.inference + path, timeout=60)
    assert response.status_code == 405
    assert ", ".join(sorted(response.headers["Allow"].split(", "))) == allow
    key = "error" if path.startswith("/v2") else "message"
    assert response.json()[key].startswith("expected ")


@pytest.mark.parametrize(
    "path",
    [
        "/predictions/none",
        "/explanations/none",
        "/v1/models/none:predict",
        "/v1/models/none",
        "/v2/models/none",
        "/v2/models/none/ready",
        "/v2/models/none/infer",
    ],
)
def test_a_model_that_there_is_not_has_one_error(server: ServerProcess, path: str) -> None:
    """Whether the door says so or the server behind it."""
    method = "POST" if path.endswith(("none", "predict", "infer")) else "GET"
    method = "GET" if path in ("/v1/models/none", "/v2/models/none") else method
    response = requests.request(method, server.inference + path, timeout=60)
    assert response.status_code == 404
    key = "error" if path.startswith("/v2") else "message"
    assert response.json() == {
        "code": 404,
        "type": "ModelNotFoundException",
        key: "there is no model none; there are: mnist, xor",
    }


def test_what_needs_no_token(store: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(hashlib.sha256(b"secret").hexdigest())
    with serving(store, "xor", TOKEN_FILE=str(tokens)) as server:
        document = get(server, "/openapi.json").json()
        assert document["security"] == [{"bearer": []}]
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                url = server.inference + path.format(name="xor", version="1.0")
                is_public = operation.get("security") == []
                status = requests.request(method, url, timeout=60).status_code
                assert (status == 401) != is_public, (method, path)
        headers = {"Authorization": "Bearer secret"}
        assert get(server, "/v2/models/xor", headers=headers).status_code == 200
        for path in ("/docs", "/docs/swagger-ui.js"):
            assert get(server, path).status_code == 200
