"""Ray Serve with dynamic batches."""

import signal
from typing import Any

import numpy as np
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from bench.peers.network import (
    MAX_BATCH,
    PORT,
    WORKERS,
    Pixels,
    answer,
    decode,
    load_onnx,
)


@serve.deployment(
    num_replicas=WORKERS, max_ongoing_requests=1024, ray_actor_options={"num_cpus": 0.5}
)
class Mnist:
    """Answers a picture that is the body of a request."""

    def __init__(self) -> None:
        self.network = load_onnx()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0)
    async def predict(self, pixels: list[Pixels]) -> list[dict[str, Any]]:
        """Answer a batch."""
        return [answer(row) for row in self.network(np.stack(pixels))]

    async def __call__(self, request: Request) -> Any:
        """Answer one picture."""
        try:
            pixels = decode(await request.body())
        except ValueError as error:
            return JSONResponse({"code": 400, "message": str(error)}, 400)
        return await self.predict(pixels)


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"port": PORT})
    serve.run(Mnist.bind(), route_prefix="/predictions/mnist")  # type: ignore[attr-defined]
    # As `serve run` does.
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    serve.shutdown()
