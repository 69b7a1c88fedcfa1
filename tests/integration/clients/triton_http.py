"""tritonclient over HTTP: `python -m tests.integration.clients.triton_http HOST:PORT`."""

import sys
from typing import Any

import numpy as np
from tritonclient import http

from tests.integration.clients.calls import IMAGES, PAIRS, report

client = http.InferenceServerClient(sys.argv[1])


def infer(
    model: str, datatype: str, values: np.ndarray[Any, Any], *, binary: bool = True, **options: Any
) -> Any:
    """Infer, by default with binary data, which is this client's default."""
    given = http.InferInput("input", list(values.shape), datatype)
    given.set_data_from_numpy(values, binary_data=binary)
    names = ("label", "probabilities")
    outputs = [http.InferRequestedOutput(name, binary_data=binary) for name in names]
    result = client.infer(model, [given], outputs=outputs, **options)
    return {name: result.as_numpy(name) for name in names} | {
        name: result.get_response().get(name) for name in ("id", "model_version")
    }


def one_output() -> Any:
    given = http.InferInput("input", list(PAIRS.shape), "FP32")
    given.set_data_from_numpy(PAIRS)
    result = client.infer("xor", [given], outputs=[http.InferRequestedOutput("label")])
    return [output["name"] for output in result.get_response()["outputs"]]


report(
    {
        "server live": client.is_server_live,
        "server ready": client.is_server_ready,
        "model ready": lambda: client.is_model_ready("mnist"),
        "version ready": lambda: client.is_model_ready("mnist", "1.0"),
        "no such model ready": lambda: client.is_model_ready("none"),
        "no such version ready": lambda: client.is_model_ready("mnist", "3"),
        "server metadata": client.get_server_metadata,
        "model metadata": lambda: client.get_model_metadata("mnist"),
        "version metadata": lambda: client.get_model_metadata("xor", "1.0"),
        "no such model": lambda: client.get_model_metadata("none"),
        "no such version": lambda: client.get_model_metadata("xor", "3"),
        "infer images": lambda: infer("mnist", "UINT8", IMAGES, request_id="one"),
        "infer images in JSON": lambda: infer(
            "mnist", "UINT8", IMAGES, binary=False, request_id="one"
        ),
        "infer numbers": lambda: infer("xor", "FP32", PAIRS, model_version="1.0"),
        "infer without a model": lambda: infer("none", "FP32", PAIRS),
        "infer without a version": lambda: infer("xor", "FP32", PAIRS, model_version="3"),
        "infer another shape": lambda: infer("mnist", "FP32", PAIRS),
        "infer one output": one_output,
    }
)
