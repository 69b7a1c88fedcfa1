import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from referencing import Registry, Resource

from handler import v2
from handler.explain import MAX_EXPLAINED
from handler.images import FORMATS, MAX_SIDE
from handler.payload import MAX_INSTANCES
from server import openapi
from server.openapi import describe
from server.store import Archive
from tests.serving import ROOT
from tests.untrained import make_card

EXAMPLES: dict[str, Any] = {
    "mnist": {"instances": [[[0] * 28] * 28]},
    "xor": {"instances": [[0, 1]]},
}


def archive(name: str, version: str = "1.0", **changes: Any) -> Archive:
    card = make_card(name, version=version, example=EXAMPLES[name], **changes)
    return Archive(Path(f"{name}.mar"), name, version, card, 1, "")


THEIRS = Archive(Path("theirs.mar"), "theirs", "1.0", None, 1, "")
ALL = [archive("mnist", "2.0"), archive("mnist"), THEIRS, archive("xor")]


def described(has_tokens: bool = False) -> Any:
    return json.loads(json.dumps(describe(ALL, has_tokens=has_tokens)))


def errors(document: Any, schema: str, value: Any) -> list[str]:
    """What a schema of the document has against a value."""
    registry: Any = Registry().with_resource("urn:d", Resource.opaque(document))
    reference = {"$ref": f"urn:d#/components/schemas/{schema}"}
    validator = OAS31Validator(reference, registry=registry)
    return [error.message for error in validator.iter_errors(value)]


@pytest.mark.parametrize("has_tokens", [False, True])
def test_valid(has_tokens: bool) -> None:
    validate(described(has_tokens))


def test_the_limits_are_the_handler_s() -> None:
    assert openapi.MAX_INSTANCES == MAX_INSTANCES
    assert openapi.MAX_EXPLAINED == MAX_EXPLAINED
    assert openapi.MAX_ID == v2._MAX_ID
    assert openapi.MAX_SIDE == MAX_SIDE
    assert {kind.removeprefix("image/").upper() for kind in openapi.IMAGE_TYPES} == set(FORMATS)


def test_the_version_is_the_project_s() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert described()["info"]["version"] == version[1]


def test_every_model_and_version_has_its_paths() -> None:
    paths = described()["paths"]
    for path in (
        "/predictions/mnist",
        "/predictions/mnist/1.0",
        "/predictions/mnist/2.0",
        "/explanations/mnist",
        "/explanations/xor/1.0",
        "/v1/models/mnist:predict",
        "/v1/models/xor:explain",
        "/v2/models/mnist/infer",
        "/v2/models/mnist/versions/1.0/infer",
        "/predictions/theirs",
    ):
        assert "post" in paths[path]
    assert paths["/predictions/mnist"]["post"] == paths["/predictions/mnist/2.0"]["post"] | {
        "operationId": "post-predictions-mnist"
    }
    name, version = paths["/v2/models/{name}/versions/{version}"]["get"]["parameters"]
    assert name["schema"]["enum"] == ["mnist", "theirs", "xor"]
    assert version["schema"]["enum"] == ["2.0", "1.0"]
    ids = [operation["operationId"] for each in paths.values() for operation in each.values()]
    assert len(ids) == len(set(ids))


def test_every_status_of_a_request_to_a_model() -> None:
    document = described()
    for path, prefix in (("/predictions/xor", ""), ("/v2/models/xor/infer", "V2")):
        responses = document["paths"][path]["post"]["responses"]
        assert set(map(int, responses)) == {
            *(200, 400, 401, 404, 405, 408, 413, 415, 429, 500, 503, 504, 507)
        }
        for status, response in responses.items():
            if status != "200":
                assert response == {"$ref": f"#/components/responses/{prefix}Error{status}"}
    assert errors(document, "Error", {"code": 400, "type": "a", "message": "b"}) == []
    assert errors(document, "V2Error", {"code": 400, "type": "a", "message": "b"})


def test_who_takes_images() -> None:
    paths = described()["paths"]
    for name, takes_them in (("mnist", True), ("xor", False)):
        content = paths[f"/predictions/{name}"]["post"]["requestBody"]["content"]
        assert ("image/png" in content) == ("multipart/form-data" in content) == takes_them
        assert "application/json" in content
    body = paths["/predictions/theirs"]["post"]["requestBody"]
    assert body["content"] == {"*/*": {}}


def test_instances() -> None:
    document = described()
    for name, good, bad in (
        ("xor", [[0, 1]], [[0]]),
        ("xor", [[0, 1]] * 1024, [[0, 1]] * 1025),
        ("mnist", EXAMPLES["mnist"]["instances"], [[[256] * 28] * 28]),
        ("mnist", [{"b64": "iVBORw0K"}], [{"b65": ""}]),
        ("xor", [[0.5, -1e30]], [["0", "1"]]),
    ):
        schema = f"{name}-1.0-Instances"
        assert errors(document, schema, {"instances": good}) == []
        assert errors(document, schema, {"instances": bad})
        assert errors(document, schema, {"instances": []})


def test_the_example_of_the_card_is_shown_as_json_and_as_a_tensor() -> None:
    document = described()
    examples = document["components"]["examples"]
    assert examples["xor-1.0-Instances"]["value"] == EXAMPLES["xor"]
    tensor = examples["xor-1.0-InferRequest"]["value"]
    assert tensor["inputs"][0] == {
        "name": "input",
        "shape": [1, 2],
        "datatype": "FP32",
        "data": [[0, 1]],
    }
    for name in ("mnist", "xor"):
        for schema in ("Instances", "InferRequest"):
            key = f"{name}-1.0-{schema}"
            assert errors(document, key, examples[key]["value"]) == []


def test_an_example_that_is_no_tensor_is_shown_as_it_is() -> None:
    card = make_card("mnist", example={"instances": [{"b64": "iVBORw0K"}]})
    document = describe([replace(archive("mnist"), card=card)], has_tokens=False)
    validate(document)
    assert list(document["components"]["examples"]) == ["mnist-1.0-Instances"]
    content = document["paths"]["/v2/models/mnist/infer"]["post"]["requestBody"]["content"]
    assert "examples" not in content["application/json"]


def test_tokens() -> None:
    assert "security" not in described()
    document = described(has_tokens=True)
    assert document["components"]["securitySchemes"] == {
        "bearer": {"type": "http", "scheme": "bearer"}
    }
    assert document["security"] == [{"bearer": []}]
    open_to_all = {
        path
        for path, each in document["paths"].items()
        for operation in each.values()
        if operation.get("security") == []
    }
    assert open_to_all == {"/", "/openapi.json", "/v2/health/live", "/v2/health/ready"}
