"""FastAPI as its documentation has it: a plain function, which it runs in a pool of threads."""

from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI, HTTPException

from bench.peers.network import PORT, WORKERS, answer, decode, load_onnx

app = FastAPI()
network = load_onnx()


@app.post("/predictions/mnist")
def predict(body: Annotated[bytes, Body(media_type="image/png")]) -> dict[str, Any]:
    """Answer one picture."""
    try:
        pixels = decode(body)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    return answer(network(pixels[None])[0])


if __name__ == "__main__":
    uvicorn.run("bench.peers.fastapi_app:app", port=PORT, workers=WORKERS, access_log=False)
