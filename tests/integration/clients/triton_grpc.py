"""tritonclient over gRPC: `python -m tests.integration.clients.triton_grpc HOST:PORT`."""

import sys
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from tritonclient import grpc

from tests.integration.clients.calls import IMAGES, PAIRS, report

client = grpc.InferenceServerClient(sys.argv[1])


def infer(model: str, datatype: str, values: np.ndarray[Any, Any], **options: Any) -> Any:
    """Infer with raw contents, which are all that this client knows."""
    given = grpc.InferInput("input", list(values.shape), datatype)
    given.set_data_from_numpy(values)
    result = client.infer(model, [given], **options)
    names = ("label", "probabilities")
    return {name: result.as_numpy(name) for name in names} | {
        name: getattr(result.get_response(), name) for name in ("id", "model_version")
    }


report(
    {
        "server live": client.is_server_live,
        "server ready": client.is_server_ready,
        "model ready": lambda: client.is_model_ready("mnist"),
        "version ready": lambda: client.is_model_ready("mnist", "1.0"),
        "no such model ready": lambda: client.is_model_ready("none"),
        "server metadata": lambda: MessageToDict(client.get_server_metadata()),
        "model metadata": lambda: MessageToDict(client.get_model_metadata("mnist")),
        "no such version": lambda: client.get_model_metadata("xor", "3"),
        "infer images": lambda: infer("mnist", "UINT8", IMAGES, request_id="one"),
        "infer numbers": lambda: infer("xor", "FP32", PAIRS, model_version="1.0"),
        "infer without a model": lambda: infer("none", "FP32", PAIRS),
        "infer another shape": lambda: infer("mnist", "FP32", PAIRS),
        "infer another datatype": lambda: infer("xor", "FP64", PAIRS.astype(np.float64)),
    }
)
