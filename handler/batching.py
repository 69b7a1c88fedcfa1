"""The core that every model shares: a batch of requests in, an answer for each in its place."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from handler.card import ModelCard
from handler.errors import HandlerError, OutOfMemoryError, RequestError
from handler.payload import body_of, instances_of, parse_json, parse_numbers
from handler.scripted import ScriptedModel

logger = logging.getLogger(__name__)

# Finer than float32 resolves near 1, and short enough to read.
_DECIMALS = 8


class BatchHandler:
    """A TorchServe handler for one TorchScript model.

    As it stands it takes `{"instances": [...]}` with nested lists of numbers in the shape that the
    model card gives, and answers with label, confidence and probabilities. A model that takes more
    forms overrides `parse_body` or `parse_instance`; one that answers otherwise, `prediction`.
    """

    card: ModelCard
    model: ScriptedModel

    def initialize(self, context: Any) -> None:
        """Load and warm the model of the unpacked archive; TorchServe calls this once a worker.

        Raises:
            ValueError: the archive's TorchScript is not the one that its card names.
        """
        properties = context.system_properties
        directory = Path(properties["model_dir"])
        self.card = ModelCard.read(directory)
        self.model = ScriptedModel(directory, self.card, properties.get("gpu_id"))

    def handle(self, requests: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch: every request that is good by one forward, every other by its own error.

        Args:
            requests: a mapping of parameter name to value for each request.
            context: TorchServe's, which takes each answer's status and content type.

        Returns:
            A body for each request, in order.
        """
        answers = [b""] * len(requests)
        accepted: list[tuple[int, torch.Tensor]] = []

        def refuse(index: int, error: RequestError) -> None:
            context.set_response_status(error.code, error.phrase, index)
            answers[index] = error.body()

        for index, request in enumerate(requests):
            context.set_response_content_type(index, "application/json")
            try:
                accepted.append((index, self.parse(request)))
            except RequestError as error:
                refuse(index, error)
            except Exception:
                # Found by one request; its neighbours are answered all the same.
                logger.exception("a request of model %s could not be parsed", self.card.name)
                refuse(index, HandlerError("the handler failed on this request"))
        if not accepted:
            return answers
        try:
            probabilities = self.model(torch.cat([instances for _, instances in accepted]))
        except Exception as failure:
            # Raised further, TorchServe would make it a 503, which says to come again.
            logger.exception("model %s failed on a batch", self.card.name)
            no_memory = isinstance(failure, MemoryError | torch.OutOfMemoryError)
            answer = (
                OutOfMemoryError("the batch does not fit into memory")
                if no_memory
                else HandlerError("the model failed on this batch")
            )
            for index, _ in accepted:
                refuse(index, answer)
            return answers
        start = 0
        for index, instances in accepted:
            answers[index] = self.answer(probabilities[start : start + len(instances)])
            start += len(instances)
        return answers

    def parse(self, request: Mapping[str, Any]) -> torch.Tensor:
        """All instances of one request, uint8 or float32 [n, *input_shape].

        Raises:
            RequestError: the request is refused, for the reason that the error gives.
        """
        body = body_of(request)
        if isinstance(body, bytes | bytearray):
            return self.parse_body(body)
        return self.parse_document(body)

    def parse_body(self, body: bytes | bytearray) -> torch.Tensor:
        """All instances of a body as it arrived."""
        return self.parse_document(parse_json(body))

    def parse_document(self, document: Any) -> torch.Tensor:
        """All instances of a body that was JSON."""
        return torch.stack(
            [
                self.parse_instance(value, f"instances[{index}]")
                for index, value in enumerate(instances_of(document))
            ]
        )

    def parse_instance(self, value: Any, where: str) -> torch.Tensor:
        """One instance, uint8 or float32 [*input_shape]; `where` is its name in an error."""
        return parse_numbers(value, self.card.input_shape, self.card.input_bounds, where)

    def answer(self, probabilities: torch.Tensor) -> bytes:
        """The body that answers one request, from float64 [n, classes]."""
        return json.dumps(
            {
                "model": self.card.name,
                "version": self.card.version,
                "predictions": [self.prediction(row) for row in probabilities],
            }
        ).encode()

    def prediction(self, probabilities: torch.Tensor) -> dict[str, Any]:
        """What is said of one instance, from float64 [classes]."""
        rounded = probabilities.round(decimals=_DECIMALS).tolist()
        label = int(probabilities.argmax())
        return {"label": label, "confidence": rounded[label], "probabilities": rounded}
