"""`python -m tests.reliability.fuzz TARGET [libFuzzer's options]`: search a parser for defects.

A target takes any bytes and raises nothing but what the parser documents; atheris looks for bytes
that make it do otherwise, and keeps those that reach new code. `corpus/TARGET` has what it found so
far, which `test_hostile_parsers.py` tries again.
"""

import argparse
import contextlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

CORPUS = Path(__file__).parent / "corpus"


def _quietly(parse: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """The parser, without the error that it may raise."""
    from handler.errors import RequestError

    def run(data: bytes) -> None:
        with contextlib.suppress(RequestError):
            parse(data)

    return run


def _card(name: str) -> Any:
    shape, bounds = ((28, 28), (0, 255)) if name == "mnist" else ((2,), None)
    return SimpleNamespace(
        name=name, version="1.0", input_shape=shape, input_bounds=bounds, classes=("0", "1")
    )


def picture() -> Callable[[bytes], None]:
    """An image file, up to the model's pixels."""
    from handler.images import Picture, decode_plain

    def parse(data: bytes) -> None:
        numbers = decode_plain(data)
        if numbers is None:
            picture = Picture(data)
            # What is dear is for the flood: a target that takes long finds little.
            if picture.pixels > 1 << 16:
                return
            numbers = picture.decode()
        assert (len(numbers), numbers.typecode) == (784, "B")

    return _quietly(parse)


def body() -> Callable[[bytes], None]:
    """A body of any model and path: the first byte chooses those and the headers."""
    from handler.batching import BatchHandler
    from handler.mnist import MnistHandler
    from handler.xor import XorHandler

    handlers: dict[str, BatchHandler] = {"mnist": MnistHandler(), "xor": XorHandler()}
    for name, handler in handlers.items():
        handler.card = _card(name)
        size = math.prod(handler.card.input_shape)
        handler.model = cast("Any", SimpleNamespace(numbers_per_instance=size))

    def parse(data: bytes) -> None:
        choice, content = data[0] if data else 0, data[1:]
        handler = handlers["mnist" if choice & 1 else "xor"]
        headers = {}
        if choice & 2:
            headers["x-protocol"] = "v2"
        if choice & 4:
            length, _, content = content.partition(b"\n")
            headers["inference-header-content-length"] = length.decode("latin-1")
        if choice & 8:
            headers["explain"] = "True"
        query = handler.parse({"body": content}, headers)
        assert len(query.instances) % handler.model.numbers_per_instance == 0
        assert all(map(math.isfinite, query.instances))

    return _quietly(parse)


def form() -> Callable[[bytes], None]:
    """A multipart form: its content type in the first line."""
    from handler.multipart import form_field

    def parse(data: bytes) -> None:
        content_type, _, content = data.partition(b"\n")
        form_field(content, content_type.decode("latin-1"), "data")

    return _quietly(parse)


def grpc() -> Callable[[bytes], None]:
    """A ModelInferRequest of gRPC, made the HTTP request that a worker gets."""
    from google.protobuf.message import DecodeError

    from server.protocol.inference_pb2 import ModelInferRequest
    from server.tensors import TensorError, request_body

    def parse(data: bytes) -> None:
        with contextlib.suppress(DecodeError, TensorError):
            request_body(ModelInferRequest.FromString(data))

    return parse


TARGETS = {"picture": picture, "body": body, "form": form, "grpc": grpc}


def main(arguments: list[str]) -> None:
    """Fuzz one target until libFuzzer's options end it; exits with libFuzzer's code."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    options, rest = parser.parse_known_args(arguments)
    import atheris

    # Instrumenting Pillow takes seconds, and only one target is for what it reads.
    libraries = {"picture": ["PIL"], "form": ["email"]}.get(options.target, [])
    with atheris.instrument_imports(include=["handler", "server", *libraries]):
        run = TARGETS[options.target]()
    atheris.Setup([sys.argv[0], *rest], lambda data: run(bytes(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
