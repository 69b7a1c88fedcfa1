"""The service does what its own OpenAPI description says."""

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from openapi_spec_validator import validate
from PIL import Image

from tests.serving import ROOT, ServerProcess

CONFIG = Path(__file__).with_name("schemathesis.toml")
SEVEN = ROOT / "samples" / "seven.png"


@pytest.fixture(scope="module")
def described(server: ServerProcess) -> Any:
    return requests.get(f"{server.inference}/openapi.json", timeout=60).json()


def operations(described: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_valid(described: Any) -> None:
    validate(described)


def test_no_case_of_schemathesis_meets_what_is_not_described(
    server: ServerProcess, tmp_path: Path
) -> None:
    """Thousands of requests, right and wrong: no undescribed status, no 5xx, no other schema."""
    program = str(Path(sys.executable).with_name("st"))
    command = [program, "--config-file", str(CONFIG), "--no-color"]
    done = subprocess.run(
        [*command, "run", f"{server.inference}/openapi.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    summary = done.stdout[done.stdout.find("= SUMMARY =") :]
    print(summary)
    assert done.returncode == 0, done.stdout[:20_000]
    selected = re.search(r"Selected: (\d+)/(\d+)\n  Tested: (\d+)", summary)
    assert selected
    assert len(set(selected.groups())) == 1
    cases = re.search(r"(\d+) generated, (\d+) passed", summary)
    assert cases
    assert cases[1] == cases[2]
    assert int(cases[1]) > 1000


def test_every_example_is_answered(server: ServerProcess, described: Any) -> None:
    answered = set()
    for path, method, operation in operations(described):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for example in content.get("examples", {}).values():
            name = example["$ref"].rpartition("/")[2]
            value = described["components"]["examples"][name]["value"]
            response = requests.request(method, server.inference + path, json=value, timeout=60)
            assert response.status_code == 200, (path, response.text)
            answered.add(path)
    assert {"/predictions/mnist", "/explanations/xor", "/v2/models/mnist/infer"} <= answered
    assert len(answered) == sum("post" in methods for methods in described["paths"].values())


def test_every_document_is_there(server: ServerProcess, described: Any) -> None:
    for path, method, operation in operations(described):
        if method == "get":
            parameters = operation.get("parameters", ())
            first = {each["name"]: each["schema"]["enum"][0] for each in parameters}
            response = requests.get(server.inference + path.format(**first), timeout=60)
            assert response.status_code == 200, path
            assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_every_way_to_send_an_image(server: ServerProcess, described: Any) -> None:
    content = described["paths"]["/predictions/mnist"]["post"]["requestBody"]["content"]
    for kind in content:
        data: Any = SEVEN.read_bytes()
        headers = {"Content-Type": kind}
        if kind == "application/json":
            continue
        if kind == "multipart/form-data":
            response = requests.post(server.url("mnist"), files={"data": data}, timeout=60)
        else:
            image = io.BytesIO()
            Image.open(SEVEN).save(image, kind.removeprefix("image/"), quality=95)
            data = image.getvalue()
            response = requests.post(server.url("mnist"), data=data, headers=headers, timeout=60)
        assert response.status_code == 200, kind
        assert response.json()["predictions"][0]["label"] == 7


def test_swagger_ui_is_compressed_and_kept(server: ServerProcess) -> None:
    url = f"{server.inference}/docs/swagger-ui.js"
    response = requests.get(url, timeout=60, headers={"Accept-Encoding": "gzip"})
    assert response.headers["Content-Encoding"] == "gzip"
    assert "SwaggerUIBundle" in response.text
    tag = response.headers["ETag"]
    again = requests.get(url, timeout=60, headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
