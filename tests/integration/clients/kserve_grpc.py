"""KServe's InferenceGRPCClient: `python -m tests.integration.clients.kserve_grpc HOST:PORT`."""

import sys
from typing import Any

import kserve
import numpy as np

from tests.integration.clients.calls import IMAGES, PAIRS, report


async def ask(method: str, *arguments: Any) -> Any:
    async with kserve.InferenceGRPCClient(sys.argv[1]) as client:
        return await getattr(client, method)(*arguments)


async def infer(
    model: str, datatype: str, values: np.ndarray[Any, Any], *, is_raw: bool = False
) -> Any:
    given = kserve.InferInput("input", list(values.shape), datatype)
    given.set_data_from_numpy(values, binary_data=is_raw)
    request = kserve.InferRequest(model_name=model, infer_inputs=[given], request_id="one")
    answer = await ask("infer", request)
    return {output.name: output.as_numpy() for output in answer.outputs} | {
        "id": answer.id,
        "model_version": answer.model_version,
    }


report(
    {
        "server live": lambda: ask("is_server_live"),
        "server ready": lambda: ask("is_server_ready"),
        "model ready": lambda: ask("is_model_ready", "mnist"),
        "no such model ready": lambda: ask("is_model_ready", "none"),
        "infer images": lambda: infer("mnist", "UINT8", IMAGES),
        "infer raw images": lambda: infer("mnist", "UINT8", IMAGES, is_raw=True),
        "infer numbers": lambda: infer("xor", "FP32", PAIRS),
        "infer another shape": lambda: infer("mnist", "FP32", PAIRS),
    }
)
