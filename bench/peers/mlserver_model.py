"""MLServer with adaptive batches: the Open Inference Protocol, a picture in base64 as BYTES."""

import asyncio

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse

from bench.peers.network import MAX_BATCH, OTHER_PORTS, PORT, WORKERS, decode, load_onnx


class Mnist(MLModel):
    """Answers label and probabilities of each picture."""

    async def load(self) -> bool:
        """Load the network."""
        self.network = load_onnx()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a batch."""
        try:
            pixels = [decode(body) for body in Base64Codec.decode_input(payload.inputs[0])]
        except ValueError as error:
            raise InferenceError(str(error)) from None
        probabilities = self.network(np.stack(pixels))
        labels = probabilities.argmax(1, keepdims=True)
        outputs = {"label": labels, "probabilities": probabilities}
        encoded = [NumpyCodec.encode_output(name, array) for name, array in outputs.items()]
        return InferenceResponse(model_name=self.name, outputs=encoded)


async def main() -> None:
    """Serve until a signal."""
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=PORT,
        grpc_port=OTHER_PORTS[0],
        metrics_port=OTHER_PORTS[1],
        parallel_workers=WORKERS,
        use_structured_logging=False,
        logging_settings=None,
    )
    model = ModelSettings(
        name="mnist", implementation=Mnist, max_batch_size=MAX_BATCH, max_batch_time=0.001
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(main())
