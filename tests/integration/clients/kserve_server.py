"""KServe's own model server, with xor: `python -m tests.integration.clients.kserve_server PORT`."""

import sys
from typing import Any

import kserve
import numpy as np


class Xor(kserve.Model):  # type: ignore[misc]
    """Answers as this service's xor does, by V1 and V2."""

    def __init__(self) -> None:
        super().__init__("xor")
        self.ready = True

    async def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": "input", "datatype": "FP32", "shape": [-1, 2]}]

    async def get_output_types(self) -> list[dict[str, Any]]:
        return [
            {"name": "label", "datatype": "INT64", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]},
        ]

    def predict(self, payload: Any, *_: Any, **__: Any) -> Any:
        if isinstance(payload, kserve.InferRequest):
            values = payload.inputs[0].as_numpy()
        else:
            values = np.array(payload["instances"])
        labels = (values[:, 0] != values[:, 1]).astype(np.int64)
        probabilities = np.eye(2, dtype=np.float32)[labels]
        if not isinstance(payload, kserve.InferRequest):
            rows = zip(labels.tolist(), probabilities.tolist(), strict=True)
            return {"predictions": [{"label": a, "probabilities": b} for a, b in rows]}
        outputs = []
        for name, datatype, array in (
            ("label", "INT64", labels),
            ("probabilities", "FP32", probabilities),
        ):
            output = kserve.InferOutput(name, list(array.shape), datatype)
            output.set_data_from_numpy(array, binary_data=False)
            outputs.append(output)
        return kserve.InferResponse(payload.id, "xor", outputs)


kserve.ModelServer(http_port=int(sys.argv[1]), enable_grpc=False).start([Xor()])
