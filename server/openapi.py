"""The OpenAPI 3.1 description of the HTTP API, from the cards of the models that are served."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from handler.card import ModelCard
from server import __version__, metadata
from server.door import MAX_BODY
from server.store import Archive, default_versions

# The handler's limits. `server/` takes of `handler/` only the card, so a test compares them.
MAX_INSTANCES = 1024
MAX_EXPLAINED = 16
MAX_ID = 256
MAX_SIDE = 4096
IMAGE_TYPES = ("image/png", "image/jpeg", "image/bmp", "image/gif", "image/webp")

_JSON, _BINARY, _FORM = "application/json", "application/octet-stream", "multipart/form-data"
_TORCHSERVE, _V1, _V2, _SERVER = "Predictions", "V1 protocol", "Open Inference Protocol", "Server"
_ERRORS = {
    400: "The request is malformed; the message says where.",
    401: "No bearer token that this service knows. Only where it asks for tokens.",
    404: "There is no such model or version; the message names those that exist.",
    405: "Not a method of this path; `Allow` has those that are.",
    408: "The request did not come in time.",
    413: f"Over {MAX_BODY:,} bytes, {MAX_INSTANCES:,} instances ({MAX_EXPLAINED} to explain), "
    f"{MAX_SIDE:,} pixels a side of an image, or as many in all images of a request.",
    415: "The body is neither JSON nor an image of a supported format.",
    429: "Over the rate at which a client may send. Only where there is a limit.",
    500: "A defect of the service, not of the request.",
    503: "Overloaded, loading or draining: send the request again after `Retry-After` seconds.",
    504: "No answer in time.",
    507: "The batch does not fit into memory.",
}
_OF_MODELS = tuple(_ERRORS)
_OF_THE_SERVER = (400, 401, 404, 405, 408, 500, 503, 504)
_HEADERS = {401: "WWW-Authenticate", 405: "Allow", 429: "Retry-After", 503: "Retry-After"}
_STRING, _BOOLEAN = {"type": "string"}, {"type": "boolean"}
_FILE = {"type": "string", "format": "binary"}


def describe(archives: Sequence[Archive], *, has_tokens: bool) -> dict[str, Any]:
    """Describe the service as it is now.

    Args:
        archives: what is served, the highest version of each model first.
        has_tokens: whether requests need a bearer token.

    Returns:
        An OpenAPI 3.1 document.
    """
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Model server",
            "version": __version__,
            "description": "TorchScript models behind one front door. The body of a request to a "
            "model is read for what it is, whatever its Content-Type says. Every answer carries "
            "the request's `X-Request-Id`, or one that was made for it.",
        },
        "tags": [{"name": name} for name in (_TORCHSERVE, _V1, _V2, _SERVER)],
        "paths": dict(_model_paths(archives)) | _server_paths(archives),
        "components": {
            "schemas": _schemas(archives),
            "examples": dict(_examples(archives)),
            "responses": dict(_error_responses()),
            "headers": {"X-Request-Id": {"schema": _STRING}},
        },
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            operation["operationId"] = re.sub(r"\W+", "-", f"{method}{path}").strip("-")
    if has_tokens:
        scheme = {"type": "http", "scheme": "bearer"}
        document["components"]["securitySchemes"] = {"bearer": scheme}
        document["security"] = [{"bearer": []}]
    return document


def takes_images(card: ModelCard) -> bool:
    """Whether an instance is a grayscale picture, which a client may also send as an image."""
    return len(card.input_shape) == 2 and card.input_bounds == (0, 255)


# --- Paths.


def _model_paths(archives: Sequence[Archive]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a worker answers. Each model has paths of its own, as it has instances of its own."""
    defaults = default_versions(archives)
    for archive in archives:
        name, version = archive.name, archive.version
        suffixes = [(f"/{version}", f"/versions/{version}")]
        if version == defaults[name]:
            suffixes.insert(0, ("", ""))
            yield f"/v1/models/{name}:predict", {"post": _predict(archive, _V1)}
            yield f"/v1/models/{name}:explain", {"post": _explain(archive, _V1)}
        for suffix, v2_suffix in suffixes:
            predict = _predict(archive, _TORCHSERVE)
            yield (
                f"/predictions/{name}{suffix}",
                {
                    "post": predict,
                    "put": predict | {"summary": f"{predict['summary']}: what curl -T sends"},
                },
            )
            yield f"/explanations/{name}{suffix}", {"post": _explain(archive, _TORCHSERVE)}
            yield f"/v2/models/{name}{v2_suffix}/infer", {"post": _infer(archive)}


def _predict(archive: Archive, tag: str) -> dict[str, Any]:
    answer = {"anyOf": [_ref(archive, "Predictions"), _ref(archive, "InferResponse")]}
    return _operation(
        tag,
        f"Predict with {archive.name} {archive.version}",
        {_JSON: {"schema": answer}} if archive.card else {"*/*": {}},
        body=_instances_content(archive, "Instances"),
    )


def _explain(archive: Archive, tag: str) -> dict[str, Any]:
    answer = {_JSON: {"schema": _ref(archive, "Explanations")}}
    return _operation(
        tag,
        f"Explain predictions of {archive.name} {archive.version}",
        answer if archive.card else {"*/*": {}},
        body=_instances_content(archive, "InstancesToExplain"),
    )


def _infer(archive: Archive) -> dict[str, Any]:
    summary = f"Infer with {archive.name} {archive.version}"
    if archive.card is None:
        return _operation(_V2, summary, {"*/*": {}}, body={"*/*": {}})
    request = {"schema": _ref(archive, "InferRequest")} | _example(archive, "InferRequest")
    answer = {"schema": _ref(archive, "InferResponse")}
    operation = _operation(
        _V2,
        summary,
        {_JSON: answer, _BINARY: {"schema": _FILE}},
        body={_JSON: request, _BINARY: {"schema": _FILE}},
    )
    operation["description"] = "JSON, or JSON that binary tensors follow."
    operation["parameters"] = [
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "description": "Length of the JSON in bytes, if binary tensors follow it.",
            "schema": {"type": "integer", "minimum": 0},
        }
    ]
    return operation


def _instances_content(archive: Archive, schema_name: str) -> dict[str, Any]:
    """The media types of a request for predictions or explanations."""
    card = archive.card
    if card is None:
        return {"*/*": {}}
    schema = {"anyOf": [_ref(archive, schema_name), _ref(archive, "InferRequest")]}
    content: dict[str, Any] = {_JSON: {"schema": schema} | _example(archive, "Instances")}
    if takes_images(card):
        content = {kind: {"schema": _FILE} for kind in IMAGE_TYPES} | content
        content[_FORM] = {"schema": _object({"data": _FILE})}
    return content


def _server_paths(archives: Sequence[Archive]) -> dict[str, Any]:
    """What the server itself answers."""
    names = dict.fromkeys(archive.name for archive in archives)
    versions = dict.fromkeys(archive.version for archive in archives)
    name = _path_parameter("name", names)
    version = _path_parameter("version", versions)

    def get(
        tag: str, summary: str, schema: str, *parameters: Any, is_public: bool = False, **more: Any
    ) -> dict[str, Any]:
        content = {_JSON: {"schema": _common_ref(schema)}}
        operation = _operation(tag, summary, content, **more)
        if parameters:
            operation["parameters"] = list(parameters)
        if is_public:
            operation["security"] = []
        return {"get": operation}

    def health(tag: str, summary: str, schema: str, *parameters: Any, **more: Any) -> Any:
        return get(tag, summary, schema, *parameters, answer_if_not=schema, **more)

    return {
        "/": health(_SERVER, "Server liveness of V1", "Alive", is_public=True),
        "/openapi.json": get(_SERVER, "This description", "OpenApi", is_public=True),
        "/v1/models": get(_V1, "Models", "Models"),
        "/v1/models/{name}": health(_V1, "Model readiness", "ModelReady", name),
        "/v2": get(_V2, "Server metadata", "Server"),
        "/v2/health/live": health(_V2, "Server liveness", "Live", is_public=True),
        "/v2/health/ready": health(
            _V2, "Server readiness: of every model", "Ready", is_public=True
        ),
        "/v2/models/{name}": get(_V2, "Model metadata", "Model", name),
        "/v2/models/{name}/versions/{version}": get(
            _V2, "Model metadata of a version", "Model", name, version
        ),
        "/v2/models/{name}/ready": health(_V2, "Model readiness", "ModelReady", name),
        "/v2/models/{name}/versions/{version}/ready": health(
            _V2, "Model readiness of a version", "ModelReady", name, version
        ),
    }


def _path_parameter(name: str, values: Any) -> dict[str, Any]:
    schema = _STRING | {"enum": list(values)}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _operation(
    tag: str,
    summary: str,
    answer: dict[str, Any],
    *,
    body: dict[str, Any] | None = None,
    answer_if_not: str | None = None,
) -> dict[str, Any]:
    """One method of a path.

    Args:
        tag: the group that it is shown in.
        summary: its name there.
        answer: content of status 200.
        body: content of the request, if it is one to a model.
        answer_if_not: schema of an answer with status 503, which the door's error has, too.
    """
    prefix = "V2" if tag == _V2 else ""
    statuses = _OF_MODELS if body else _OF_THE_SERVER
    responses: dict[str, Any] = {"200": _response("The answer.", answer)}
    for status in statuses:
        responses[str(status)] = {"$ref": f"#/components/responses/{prefix}Error{status}"}
    if answer_if_not:
        either = {"anyOf": [_common_ref(answer_if_not), _common_ref(f"{prefix}Error")]}
        responses["503"] = _response("Not alive, or not ready.", {_JSON: {"schema": either}})
    operation: dict[str, Any] = {"tags": [tag], "summary": summary, "responses": responses}
    if body:
        operation["requestBody"] = {"required": True, "content": body}
    return operation


def _response(description: str, content: dict[str, Any], *headers: str) -> dict[str, Any]:
    described: dict[str, Any] = {name: {"schema": _STRING} for name in headers}
    described["X-Request-Id"] = {"$ref": "#/components/headers/X-Request-Id"}
    return {"description": description, "headers": described, "content": content}


def _error_responses() -> Iterator[tuple[str, dict[str, Any]]]:
    for status, description in _ERRORS.items():
        headers = [_HEADERS[status]] if status in _HEADERS else []
        for prefix in ("", "V2"):
            content = {_JSON: {"schema": _common_ref(f"{prefix}Error")}}
            yield f"{prefix}Error{status}", _response(description, content, *headers)


# --- Examples: what a model is warmed up with.


def _examples(archives: Sequence[Archive]) -> Iterator[tuple[str, dict[str, Any]]]:
    for archive in archives:
        for name, value in _examples_of(archive).items():
            yield _component(archive, name), {"value": value}


def _examples_of(archive: Archive) -> dict[str, Any]:
    """The card's example, and the same as a tensor if it is given in numbers."""
    card = archive.card
    if card is None:
        return {}
    instances = card.example.get("instances", [])
    if not instances or not isinstance(instances[0], list):
        return {"Instances": card.example}
    (tensor,) = metadata.inputs(card)
    shape = [len(instances), *card.input_shape]
    given = {"name": tensor.name, "shape": shape, "datatype": "FP32", "data": instances}
    return {"Instances": card.example, "InferRequest": {"inputs": [given]}}


def _example(archive: Archive, name: str) -> dict[str, Any]:
    if name not in _examples_of(archive):
        return {}
    reference = {"$ref": f"#/components/examples/{_component(archive, name)}"}
    return {"examples": {"example": reference}}


# --- Schemas.


def _schemas(archives: Sequence[Archive]) -> dict[str, Any]:
    error = {"code": {"type": "integer"}, "type": _STRING}
    tensor = _object({"name": _STRING, "datatype": _STRING, "shape": _list({"type": "integer"})})
    schemas = {
        "Error": _object(error | {"message": _STRING}),
        "V2Error": _object(error | {"error": _STRING}),
        "OpenApi": {"type": "object"},
        "Alive": _object({"status": {"enum": ["alive", "dead"]}}),
        "Models": _object({"models": _list(_STRING)}),
        "Server": _object({"name": _STRING, "version": _STRING, "extensions": _list(_STRING)}),
        "Live": _object({"live": _BOOLEAN}),
        "Ready": _object({"ready": _BOOLEAN}),
        "ModelReady": _object({"name": _STRING, "ready": _BOOLEAN}, reason=_STRING),
        "Tensor": tensor,
        "Model": _object(
            {
                "name": _STRING,
                "versions": _list(_STRING),
                "platform": _STRING,
                "inputs": _list(_common_ref("Tensor")),
                "outputs": _list(_common_ref("Tensor")),
            }
        ),
    }
    for archive in archives:
        if archive.card:
            for name, schema in _model_schemas(archive.card).items():
                schemas[_component(archive, name)] = schema
    return schemas


def _model_schemas(card: ModelCard) -> dict[str, Any]:
    """Those that follow from what one model takes and gives."""
    number = {"type": "number"}
    given_number: dict[str, Any] = number
    if card.input_bounds:
        low, high = card.input_bounds
        given_number = number | {"minimum": low, "maximum": high}
    instance = _array(given_number, card.input_shape)
    if takes_images(card):
        image = _STRING | {"contentEncoding": "base64", "contentMediaType": IMAGE_TYPES[0]}
        instance = {"anyOf": [instance, _object({"b64": image})]}
    label = {
        "type": "integer",
        "minimum": 0,
        "maximum": len(card.classes) - 1,
        "description": f"Of the classes {', '.join(card.classes)}.",
    }
    probability = number | {"minimum": 0, "maximum": 1}
    prediction = {
        "label": label,
        "confidence": probability,
        "probabilities": _array(probability, (len(card.classes),)),
    }
    explanation = {
        "label": label,
        "confidence": probability,
        "input": _array(number, card.input_shape),
        "attributions": _array(number, card.input_shape),
    }
    count = {"type": "integer", "minimum": 1, "maximum": MAX_INSTANCES}
    lengths = [count, *({"const": length} for length in card.input_shape)]
    given = {
        "name": _STRING,
        "shape": {
            "type": "array",
            "prefixItems": lengths,
            "minItems": len(lengths),
            "maxItems": len(lengths),
        },
        "datatype": {"enum": ["UINT8", "FP32"]},
        "data": {"type": "array", "description": "Flat, or nested as the shape is."},
    }
    outputs = [tensor.name for tensor in metadata.outputs(card)]
    output = {
        "name": {"enum": outputs},
        "shape": _list({"type": "integer"}),
        "datatype": _STRING,
    }
    of_model = {"model": {"const": card.name}, "version": {"const": card.version}}
    parameters = {"type": "object"}
    return {
        "Instances": _object({"instances": _list(instance, 1, MAX_INSTANCES)}),
        "InstancesToExplain": _object({"instances": _list(instance, 1, MAX_EXPLAINED)}),
        "Predictions": _object(of_model | {"predictions": _list(_object(prediction))}),
        "Explanations": _object(of_model | {"explanations": _list(_object(explanation))}),
        "InferRequest": _object(
            {"inputs": _list(_object(given, parameters=parameters), 1, 1)},
            id=_STRING | {"maxLength": MAX_ID},
            parameters=parameters,
            outputs=_list(_object({"name": {"enum": outputs}}, parameters=parameters)),
        ),
        "InferResponse": _object(
            {
                "model_name": {"const": card.name},
                "model_version": {"const": card.version},
                "outputs": _list(_object(output, data=_list(number), parameters=parameters)),
            },
            id=_STRING,
            parameters=parameters,
        ),
    }


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": required | optional}


def _list(items: dict[str, Any], least: int = 0, most: int | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": items, "minItems": least}
    return schema if most is None else schema | {"maxItems": most}


def _array(items: dict[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    """Nested lists of this shape."""
    for length in reversed(shape):
        items = _list(items, length, length)
    return items


def _component(archive: Archive, name: str) -> str:
    return f"{archive.name}-{archive.version}-{name}"


def _ref(archive: Archive, name: str) -> dict[str, Any]:
    return _common_ref(_component(archive, name))


def _common_ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}
