"""KServe's REST client, V1 and V2: `python -m tests.integration.clients.kserve_rest URL`."""

import sys
from typing import Any

import kserve
import numpy as np

from tests.integration.clients.calls import IMAGES, PAIRS, report

base = sys.argv[1]


async def v1(method: str, *arguments: Any, **options: Any) -> Any:
    return await ask("v1", method, *arguments, **options)


async def v2(method: str, *arguments: Any, **options: Any) -> Any:
    return await ask("v2", method, *arguments, **options)


async def ask(protocol: str, method: str, *arguments: Any, **options: Any) -> Any:
    config = kserve.RESTConfig(protocol=protocol)
    async with kserve.InferenceRESTClient(config) as client:
        return await getattr(client, method)(base, *arguments, **options)


async def infer_v2(
    model: str, datatype: str, values: np.ndarray[Any, Any], *, binary: bool = False
) -> Any:
    given = kserve.InferInput("input", list(values.shape), datatype)
    given.set_data_from_numpy(values, binary_data=binary)
    request = kserve.InferRequest(model_name=model, infer_inputs=[given], request_id="one")
    answer = await v2("infer", request, model_name=model)
    return {output.name: output.as_numpy() for output in answer.outputs} | {
        "id": answer.id,
        "model_version": answer.model_version,
    }


pairs = {"instances": PAIRS.tolist()}
report(
    {
        "v1 server live": lambda: v1("is_server_live"),
        "v1 model ready": lambda: v1("is_model_ready", "mnist"),
        "v1 no such model ready": lambda: v1("is_model_ready", "none"),
        "v1 infer images": lambda: v1("infer", {"instances": IMAGES.tolist()}, model_name="mnist"),
        "v1 infer numbers": lambda: v1("infer", pairs, model_name="xor"),
        "v1 infer without a model": lambda: v1("infer", pairs, model_name="none"),
        "v1 infer another shape": lambda: v1("infer", pairs, model_name="mnist"),
        "v2 server live": lambda: v2("is_server_live"),
        "v2 server ready": lambda: v2("is_server_ready"),
        "v2 model ready": lambda: v2("is_model_ready", "mnist"),
        "v2 no such model ready": lambda: v2("is_model_ready", "none"),
        "v2 infer images": lambda: infer_v2("mnist", "UINT8", IMAGES),
        "v2 infer images in binary": lambda: infer_v2("mnist", "UINT8", IMAGES, binary=True),
        "v2 infer numbers": lambda: infer_v2("xor", "FP32", PAIRS),
        "v2 infer without a model": lambda: infer_v2("none", "FP32", PAIRS),
        "v2 infer another shape": lambda: infer_v2("mnist", "FP32", PAIRS),
        "v1 explain": lambda: v1("explain", "xor", pairs),
    }
)
