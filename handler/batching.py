"""The core of every handler: a batch of requests in, an answer for each in its place."""

import json
import logging
import math
import operator
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from handler import v2
from handler.card import ModelCard
from handler.errors import HandlerError, OutOfMemoryError, RequestError
from handler.metrics import Metrics
from handler.payload import (
    FLOAT32_MAX,
    Numbers,
    body_of,
    concatenate,
    instances_of,
    parse_json,
    parse_numbers,
)
from handler.scripted import ScriptedModel

logger = logging.getLogger(__name__)

# Finer than float32 resolves near 1, and short enough to read.
_DECIMALS = 8
# A Unix time beyond the first is not in seconds, beyond the second not in milliseconds: the years
# 1973 to 5138 are told apart.
_MILLISECONDS, _MICROSECONDS = 1e11, 1e14
# The product of two numbers beyond this overflows float32.
_OVERFLOWS = math.sqrt(FLOAT32_MAX)


@dataclass(frozen=True)
class Query:
    """One parsed request.

    Attributes:
        instances: one or more, uint8 or float32, each in row-major order.
        is_v2: whether it came, and is answered, in the Open Inference Protocol.
        id: the request's id in that protocol, or None.
    """

    instances: Numbers
    is_v2: bool = False
    id: str | None = None


class BatchHandler:
    """A TorchServe handler for one TorchScript model.

    It takes `{"instances": [...]}` with nested lists of numbers in the shape that the model card
    gives, or the same as a tensor of the Open Inference Protocol, and answers with label,
    confidence and probabilities. A model that takes more forms overrides `parse_body` or
    `parse_instances`; one that answers otherwise, `prediction`.

    Attributes:
        card: of the model.
        model: runs its TorchScript.
        metrics: of this worker.
    """

    card: ModelCard
    model: ScriptedModel
    metrics: Metrics

    def initialize(self, context: Any) -> None:
        """Load and warm the model of the unpacked archive; TorchServe calls this once a worker.

        Raises:
            CardError: the archive's model card cannot be read.
            ValueError: the archive's TorchScript is not the one that its card names.
        """
        properties = context.system_properties
        directory = Path(properties["model_dir"])
        self.card = ModelCard.read(directory)
        self.model = ScriptedModel(directory, self.card, properties.get("gpu_id"))
        self.metrics = Metrics(self.card, str(self.model.device))

    def handle(self, requests: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch: good requests with one forward, each other one with its own error.

        Args:
            requests: for each request its parameters by name.
            context: TorchServe's, which takes each answer's status and headers.

        Returns:
            A body for each request, in order.
        """
        start, now = time.perf_counter(), time.time()
        all_headers = [headers_of(context, index) for index in range(len(requests))]
        waits = [queued(headers, now) for headers in all_headers]
        errors: dict[int, RequestError] = {}
        queries: dict[int, Query] = {}
        for index, (request, headers) in enumerate(zip(requests, all_headers, strict=True)):
            try:
                queries[index] = self.parse(request, headers)
            except RequestError as error:
                errors[index] = error
            except Exception:
                # A defect that one request has found; its neighbours are answered all the same.
                logger.exception(
                    "request %s of model %s could not be parsed", id_of(headers), self.card.name
                )
                errors[index] = HandlerError("the handler failed on this request")
        ids = {index: id_of(all_headers[index]) for index in queries}
        answers = self._answer(queries, errors, ids, start)
        for index, refusal in errors.items():
            context.set_response_status(refusal.code, refusal.phrase, index)
            for name, value in refusal.headers.items():
                context.set_response_header(index, name, value)
            grpc = {} if is_http(all_headers[index]) else v2.error(self.card, str(refusal))
            answers[index] = refusal.body(**grpc)
        for index in range(len(requests)):
            context.set_response_content_type(index, "application/json")
        seconds = time.perf_counter() - start
        self.metrics.batch(waits, errors.values(), seconds)
        return [answers[index] for index in range(len(requests))]

    def _answer(
        self,
        queries: dict[int, Query],
        errors: dict[int, RequestError],
        ids: Mapping[int, str],
        start: float,
    ) -> dict[int, bytes]:
        """Answer the queries by index; for those that the model fails on, add errors instead."""
        parsed = time.perf_counter()
        if not queries:
            self.metrics.stages(parsed - start)
            return {}
        try:
            numbers = concatenate([query.instances for query in queries.values()])
            output = self.model(numbers)
        except Exception as failure:
            # TorchServe would answer 503 to what is raised here, and clients would send it again.
            logger.exception(
                "model %s failed on a batch, of requests %s",
                self.card.name,
                ", ".join(ids.values()),
            )
            no_memory = isinstance(failure, MemoryError | torch.OutOfMemoryError)
            error = (
                OutOfMemoryError("the batch does not fit into memory")
                if no_memory
                else HandlerError("the model failed on this batch")
            )
            errors |= dict.fromkeys(queries, error)
            self.metrics.stages(parsed - start)
            return {}
        forwarded = time.perf_counter()
        labels: list[int] = output.argmax(dim=1).tolist()
        probabilities: list[list[float]] = output.round(decimals=_DECIMALS).tolist()
        answers: dict[int, bytes] = {}
        answered: list[int] = []
        confidences: list[float] = []
        begin = 0
        for index, query in queries.items():
            end = begin + len(query.instances) // self.model.numbers_per_instance
            part = slice(begin, end)
            begin = end
            try:
                answers[index] = self.answer(query, labels[part], probabilities[part])
            except ValueError:
                errors[index] = self._not_finite(query, ids[index])
                continue
            answered += labels[part]
            confidences += map(operator.getitem, probabilities[part], labels[part])
        self.metrics.stages(parsed - start, forwarded - parsed, time.perf_counter() - forwarded)
        self.metrics.predictions(answered, confidences)
        return answers

    def _not_finite(self, query: Query, id_: str) -> RequestError:
        """Tell who is to blame for an output that JSON cannot express, NaN or infinity."""
        largest = max(map(abs, query.instances))
        if largest > _OVERFLOWS:
            return RequestError(
                f"the model overflows float32 on these numbers, of which the largest is {largest:g}"
            )
        logger.error(
            "model %s %s: the output for request %s is not finite, though no number in it is over "
            "%g",
            self.card.name,
            self.card.version,
            id_,
            largest,
        )
        return HandlerError("the model's output for this request is not finite")

    def parse(self, request: Mapping[str, Any], headers: Mapping[str, str]) -> Query:
        """Read one request.

        Args:
            request: its parameters by name.
            headers: its headers by name in lower case.

        Raises:
            RequestError: the request is refused; the error says why.
        """
        body = body_of(request, headers.get("x-content-type", ""))
        if isinstance(body, bytes | bytearray):
            return self.parse_body(body)
        return self.parse_document(body)

    def parse_body(self, body: bytes | bytearray) -> Query:
        """Read a body as it arrived."""
        return self.parse_document(parse_json(body))

    def parse_document(self, document: Any) -> Query:
        """Read a decoded JSON body."""
        if isinstance(document, dict) and "inputs" in document:
            instances, id_ = v2.parse(document, self.card)
            return Query(instances, is_v2=True, id=id_)
        return Query(concatenate(self.parse_instances(instances_of(document))))

    def parse_instances(self, values: Sequence[Any]) -> list[Numbers]:
        """Read what stands under `instances`."""
        return [
            self.parse_instance(value, f"instances[{index}]") for index, value in enumerate(values)
        ]

    def parse_instance(self, value: Any, where: str) -> Numbers:
        """Read one instance in the model's shape; `where` is its name in an error."""
        return parse_numbers(value, self.card.input_shape, self.card.input_bounds, where)

    def answer(self, query: Query, labels: list[int], probabilities: list[list[float]]) -> bytes:
        """Serialise the answer to a query.

        Args:
            query: with n instances.
            labels: n labels.
            probabilities: for each instance, of each class.

        Raises:
            ValueError: a number is not finite.
        """
        if query.is_v2:
            return v2.answer(self.card, query.id, labels, probabilities)
        predictions = map(self.prediction, labels, probabilities)
        document: dict[str, Any] = {"model": self.card.name, "version": self.card.version}
        document["predictions"] = list(predictions)
        return json.dumps(document, allow_nan=False).encode()

    def prediction(self, label: int, probabilities: list[float]) -> dict[str, Any]:
        """Describe one instance's prediction."""
        return {
            "label": label,
            "confidence": probabilities[label],
            "probabilities": probabilities,
        }


def headers_of(context: Any, index: int) -> dict[str, str]:
    """The headers of a request, by name in lower case."""
    headers = context.get_all_request_header(index)
    return {name.lower(): value for name, value in headers.items()}


def is_http(headers: Mapping[str, str]) -> bool:
    """Whether a request came over HTTP; by TorchServe's gRPC it has neither of these headers."""
    return "x-request-id" in headers or "host" in headers


def id_of(headers: Mapping[str, str]) -> str:
    """The request's id in logs, which the front door gives it."""
    return headers.get("x-request-id", "without an id")


def queued(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds since the front door took a request in, by its `X-Request-Start: t=<unix time>`.

    Proxies write that in seconds, milliseconds or microseconds; which of them it is shows in its
    size. None without that header, or if it is not a time within the past hour.
    """
    start = headers.get("x-request-start")
    if start is None:
        return None
    try:
        time_ = float(start.removeprefix("t="))
    except ValueError:
        return None
    if time_ > _MICROSECONDS:
        time_ /= 1e6
    elif time_ > _MILLISECONDS:
        time_ /= 1e3
    wait = now - time_
    return wait if 0 <= wait < 3600 else None
