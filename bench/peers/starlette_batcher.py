"""Starlette with a micro-batcher as one writes it by hand: what came together is a batch.

python -m bench.peers.starlette_batcher {onnx,torchscript}
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.peers.network import (
    MAX_BATCH,
    PORT,
    WORKERS,
    Network,
    Pixels,
    Probabilities,
    answer,
    decode,
    load_onnx,
    load_torchscript,
)

queue: asyncio.Queue[tuple[Pixels, asyncio.Future[Probabilities]]] = asyncio.Queue(1024)


async def run_batches(network: Network) -> None:
    """Run the network on what has arrived, again and again.

    On the event loop: a thread for it costs more than the network takes.
    """
    while True:
        batch = [await queue.get()]
        # Whatever else the loop has read by now joins the batch.
        await asyncio.sleep(0)
        while len(batch) < MAX_BATCH and not queue.empty():
            batch.append(queue.get_nowait())
        probabilities = network(np.stack([pixels for pixels, _ in batch]))
        for (_, future), row in zip(batch, probabilities, strict=True):
            if not future.done():
                future.set_result(row)


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Run the batcher while the server runs."""
    load = load_torchscript if os.environ["PEER_RUNTIME"] == "torchscript" else load_onnx
    task = asyncio.create_task(run_batches(load()))
    yield
    task.cancel()


async def predict(request: Request) -> Response:
    """Answer one picture."""
    try:
        pixels = decode(await request.body())
    except ValueError as error:
        return Response(json.dumps({"code": 400, "message": str(error)}), 400)
    future: asyncio.Future[Probabilities] = asyncio.get_running_loop().create_future()
    await queue.put((pixels, future))
    return Response(json.dumps(answer(await future)), media_type="application/json")


app = Starlette(routes=[Route("/predictions/mnist", predict, methods=["POST"])], lifespan=lifespan)

if __name__ == "__main__":
    os.environ["PEER_RUNTIME"] = sys.argv[1]
    uvicorn.run("bench.peers.starlette_batcher:app", port=PORT, workers=WORKERS, access_log=False)
