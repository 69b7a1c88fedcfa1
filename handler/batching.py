"""The core of every handler: a batch of requests in, an answer for each in its place."""

import json
import logging
import math
import operator
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from handler import v2
from handler.allowance import Allowance
from handler.card import ModelCard
from handler.errors import (
    HandlerError,
    OutOfMemoryError,
    PayloadTooLargeError,
    RequestError,
    UnsupportedMediaTypeError,
)
from handler.explain import MAX_EXPLAINED, Occlusion
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
_JSON_LENGTH = v2.JSON_LENGTH.lower()
# `json.dumps` would make an encoder for each answer: 7.4 us for one instance, and 6.5 without.
_to_json = json.JSONEncoder(allow_nan=False).encode


@dataclass(frozen=True)
class Query:
    """One parsed request.

    Attributes:
        instances: one or more, uint8 or float32, each in row-major order.
        options: how to answer in the Open Inference Protocol, in which it came; or None.
        is_explained: whether it asks for explanations.
    """

    instances: Numbers
    options: v2.Options | None = None
    is_explained: bool = False


class BatchHandler:
    """A TorchServe handler for one TorchScript model.

    It takes `{"instances": [...]}` with nested lists of numbers in the shape that the model card
    gives, or the same as a tensor of the Open Inference Protocol, and answers with label,
    confidence and probabilities, and on request with explanations. A model that takes more forms
    overrides `parse_body` or `parse_instances`; one that answers otherwise, `prediction`.

    Attributes:
        baseline: the number in an instance that stands for nothing there, for explanations.
        allowance: of the time of this worker that dear requests may take.
        card: of the model.
        model: runs its TorchScript.
        metrics: of this worker.
    """

    card: ModelCard
    model: ScriptedModel
    metrics: Metrics
    baseline = 0.0

    def __init__(self) -> None:
        self.allowance = Allowance()

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
        self.explain = Occlusion(self.model.run, self.card.input_shape, self.baseline)
        self.metrics = Metrics(self.card, str(self.model.device))

    def handle(self, requests: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch: good requests with one forward, each other one with its own error.

        Args:
            requests: for each request its parameters by name.
            context: TorchServe's, which takes each answer's status and headers.

        Returns:
            A body for each request, in order.
        """
        self.allowance.begin_batch(len(requests))
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
            except MemoryError:
                logger.exception("request %s does not fit into memory", id_of(headers))
                errors[index] = OutOfMemoryError("the request does not fit into memory")
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
            headers = all_headers[index]
            grpc = {} if is_http(headers) else v2.error(self.card, str(refusal))
            answers[index] = v2.Answer(refusal.body(is_v2(headers), **grpc))
        bodies = []
        for index in range(len(requests)):
            body, json_length = answers[index]
            bodies.append(body)
            if json_length is None:
                context.set_response_content_type(index, "application/json")
            else:
                context.set_response_content_type(index, "application/octet-stream")
                context.set_response_header(index, v2.JSON_LENGTH, str(json_length))
        one = math.prod(self.card.input_shape)
        several = {
            index
            for index, query in queries.items()
            if query.is_explained or len(query.instances) > one
        }
        seconds = time.perf_counter() - start
        self.metrics.batch(waits, errors.values(), several, seconds)
        return bodies

    def _answer(
        self,
        queries: dict[int, Query],
        errors: dict[int, RequestError],
        ids: Mapping[int, str],
        start: float,
    ) -> dict[int, v2.Answer]:
        """Answer the queries by index; for those that the model fails on, add errors instead."""
        parsed = time.perf_counter()
        if not queries:
            self.metrics.stages(parsed - start)
            return {}
        try:
            numbers = concatenate([query.instances for query in queries.values()])
            output = self.model(numbers)
        except Exception as failure:  # noqa: BLE001 (whatever it is, the worker goes on)
            error = self._failure(failure, ids.values())
            errors |= dict.fromkeys(queries, error)
            self.metrics.stages(parsed - start)
            return {}
        forwarded = time.perf_counter()
        labels: list[int] = output.argmax(dim=1).tolist()
        probabilities: list[list[float]] = output.round(decimals=_DECIMALS).tolist()
        answers: dict[int, v2.Answer] = {}
        answered: list[int] = []
        confidences: list[float] = []
        explained = []
        begin = 0
        for index, query in queries.items():
            end = begin + len(query.instances) // self.model.numbers_per_instance
            part = slice(begin, end)
            begin = end
            if query.is_explained:
                explained.append((index, query, output[part]))
                continue
            try:
                answers[index] = self.answer(query, labels[part], probabilities[part])
            except ValueError:
                errors[index] = self._not_finite(query, ids[index])
                continue
            answered += labels[part]
            confidences += map(operator.getitem, probabilities[part], labels[part])
        self.metrics.stages(parsed - start, forwarded - parsed, time.perf_counter() - forwarded)
        self.metrics.predictions(answered, confidences)
        for index, query, part_output in explained:
            try:
                answers[index] = self._explanations(query, part_output)
            except RequestError as error:
                errors[index] = error
            except ValueError:
                errors[index] = self._not_finite(query, ids[index])
            except Exception as failure:  # noqa: BLE001 (as above)
                errors[index] = self._failure(failure, [ids[index]])
        return answers

    def _explanations(self, query: Query, output: torch.Tensor) -> v2.Answer:
        """Explain a query's predictions.

        Raises:
            OverloadedError: the worker has spent its share of time on dear requests.
            ValueError: a number is not finite.
        """
        with self.allowance.spend():
            start = time.perf_counter()
            instances = self.model.tensor(query.instances)
            attributions = self.explain(instances, output)
            predictions = map(
                self.prediction,
                output.argmax(dim=1).tolist(),
                output.round(decimals=_DECIMALS).tolist(),
            )
            explanations = [
                prediction | {"input": input_, "attributions": attribution}
                for prediction, input_, attribution in zip(
                    predictions,
                    instances.tolist(),
                    attributions.round(decimals=_DECIMALS).tolist(),
                    strict=True,
                )
            ]
            answer = self._document("explanations", explanations)
            self.metrics.explanations(len(instances), time.perf_counter() - start)
        return answer

    def _failure(self, failure: Exception, ids: Iterable[str]) -> RequestError:
        """Log what the model raised on some requests, and make their error of it.

        TorchServe would answer 503 to what is raised to it, and clients would send it again.
        """
        logger.error(
            "model %s failed on a batch, of requests %s",
            self.card.name,
            ", ".join(ids),
            exc_info=failure,
        )
        if isinstance(failure, MemoryError | torch.OutOfMemoryError):
            return OutOfMemoryError("the batch does not fit into memory")
        return HandlerError("the model failed on this batch")

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
        if "content-encoding" in headers:
            raise UnsupportedMediaTypeError(
                f"expected a body that is not compressed, got the Content-Encoding "
                f"{headers['content-encoding']!r:.40}"
            )
        is_explained = headers.get("explain") == "True"  # TorchServe, for its path /explanations
        if is_explained:
            # Not after the forward: what is put off would have cost more than its refusal.
            self.allowance.check()
        body = body_of(request, headers.get("x-content-type", ""))
        is_raw = isinstance(body, bytes | bytearray)
        json_length = headers.get(_JSON_LENGTH)
        if json_length is not None and is_raw:
            document, binary = v2.split(body, json_length)
            query = Query(*v2.parse(document, self.card, binary))
        elif is_v2(headers):
            query = Query(*v2.parse(parse_json(body) if is_raw else body, self.card))
        else:
            query = self.parse_body(body) if is_raw else self.parse_document(body)
        if not is_explained:
            return query
        count = len(query.instances) // self.model.numbers_per_instance
        if count > MAX_EXPLAINED:
            raise PayloadTooLargeError(
                f"expected 1 to {MAX_EXPLAINED} instances to explain, got {count}"
            )
        return replace(query, is_explained=True)

    def parse_body(self, body: bytes | bytearray) -> Query:
        """Read a body as it arrived."""
        return self.parse_document(parse_json(body))

    def parse_document(self, document: Any) -> Query:
        """Read a decoded JSON body."""
        if isinstance(document, dict) and "inputs" in document:
            return Query(*v2.parse(document, self.card))
        return Query(concatenate(self.parse_instances(instances_of(document))))

    def parse_instances(self, values: Sequence[Any]) -> list[Numbers]:
        """Read what stands under `instances`."""
        return [
            self.parse_instance(value, f"instances[{index}]") for index, value in enumerate(values)
        ]

    def parse_instance(self, value: Any, where: str) -> Numbers:
        """Read one instance in the model's shape; `where` is its name in an error."""
        return parse_numbers(value, self.card.input_shape, self.card.input_bounds, where)

    def answer(
        self, query: Query, labels: list[int], probabilities: list[list[float]]
    ) -> v2.Answer:
        """Serialise the answer to a query.

        Args:
            query: with n instances.
            labels: n labels.
            probabilities: for each instance, of each class.

        Raises:
            ValueError: a number is not finite.
        """
        if query.options:
            return v2.answer(self.card, query.options, labels, probabilities)
        return self._document("predictions", list(map(self.prediction, labels, probabilities)))

    def _document(self, key: str, items: list[dict[str, Any]]) -> v2.Answer:
        document = {"model": self.card.name, "version": self.card.version, key: items}
        return v2.Answer(_to_json(document).encode())

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


def is_v2(headers: Mapping[str, str]) -> bool:
    """Whether a request came by a path of the Open Inference Protocol: the front door says so."""
    return headers.get("x-protocol") == "v2"


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
