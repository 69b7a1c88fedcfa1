import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from handler.batching import BatchHandler, Query, queued
from handler.card import TORCHSCRIPT_FILE
from handler.mnist import MnistHandler
from handler.scripted import CpuForward
from handler.xor import XorHandler
from tests.images import b64, png
from tests.unit.conftest import Context

Load = Callable[[type[BatchHandler], str], BatchHandler]


def ask(handler: BatchHandler, *bodies: Any) -> list[tuple[int, dict[str, Any]]]:
    """Status and answer of each body, sent as one batch."""
    context = Context(Path(), len(bodies))
    answers = handler.handle([{"body": body} for body in bodies], context)
    assert context.content_types == ["application/json"] * len(bodies)
    return [(c, json.loads(a)) for c, a in zip(context.codes, answers, strict=True)]


def noise(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)


def test_each_request_is_answered_in_its_place(loaded: Load) -> None:
    handler = loaded(XorHandler, "xor")
    good = b'{"instances": [[0, 1], [1, 1]]}'
    answers = ask(handler, good, b"{", good, b'{"instances": [[1]]}', b'{"instances": [[0, 0]]}')
    assert [code for code, _ in answers] == [200, 400, 200, 400, 200]
    assert [len(answer.get("predictions", [])) for _, answer in answers] == [2, 0, 2, 0, 1]
    assert answers[0] == answers[2]
    assert answers[3][1]["message"] == "instances[0]: expected 2 numbers, got 1"


@pytest.mark.parametrize("size", [2, 3, 4, 7, 64, CpuForward.max_batch + 3])
def test_the_batch_does_not_change_the_numbers(loaded: Load, size: int) -> None:
    handler = loaded(MnistHandler, "mnist")
    bodies = [png(image) for image in noise(size)]
    alone = [ask(handler, body)[0][1]["predictions"][0] for body in bodies[:8]]
    mixed: list[Any] = [b"bad", *bodies[:1], b"{}", *bodies[1:]]
    together = [answer for code, answer in ask(handler, *mixed) if code == 200]
    assert len(together) == size
    for one, many in zip(alone, together, strict=False):
        (prediction,) = many["predictions"]
        assert prediction["label"] == one["label"]
        assert prediction["probabilities"] == pytest.approx(one["probabilities"], abs=1e-6)


def test_a_batch_without_a_good_request(loaded: Load) -> None:
    answers = ask(loaded(XorHandler, "xor"), b"", b"[]")
    assert [code for code, _ in answers] == [400, 400]


def test_a_defect_found_by_one_request_stays_with_it(
    loaded: Load, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handler = loaded(XorHandler, "xor")
    parse = handler.parse

    def defective(request: Any) -> Query:
        if request["body"] == b"trigger":
            raise ZeroDivisionError
        return parse(request)

    monkeypatch.setattr(handler, "parse", defective)
    answers = ask(handler, b'{"instances": [[0, 1]]}', b"trigger")
    assert [code for code, _ in answers] == [200, 500]
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("failure", "code"),
    [(RuntimeError("x"), 500), (torch.OutOfMemoryError("x"), 507), (MemoryError(), 507)],
)
def test_a_forward_that_fails_is_no_overload_and_ends_no_worker(
    loaded: Load, monkeypatch: pytest.MonkeyPatch, failure: Exception, code: int
) -> None:
    handler = loaded(XorHandler, "xor")
    good = b'{"instances": [[0, 1]]}'

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(handler, "model", fail)
        answers = ask(handler, good, b"{", good)
    assert [status for status, _ in answers] == [code, 400, code]
    assert ask(handler, good)[0][0] == 200


def test_a_body_that_the_server_has_decoded_already(loaded: Load) -> None:
    """A TorchServe with its default configuration decodes JSON, and text, before the handler."""
    handler = loaded(MnistHandler, "mnist")
    (image,) = noise(1)
    document = {"instances": [b64(png(image)), image.tolist()]}
    raw, decoded, text = ask(handler, json.dumps(document).encode(), document, json.dumps(document))
    assert raw == decoded == text
    assert raw[0] == 200
    assert [code for code, _ in ask(handler, [1], 5, None, "text")] == [400, 400, 400, 415]


def test_a_torchscript_that_is_not_the_archived_one(loaded: Load, tmp_path: Path) -> None:
    handler = loaded(XorHandler, "xor")
    with (tmp_path / TORCHSCRIPT_FILE).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match="the archive was altered or damaged"):
        handler.initialize(Context(tmp_path))


def test_an_error_that_came_by_grpc_reads_as_an_answer(loaded: Load) -> None:
    handler = loaded(XorHandler, "xor")
    context = Context(Path(), 2)
    context.headers[1] = {}
    by_http, by_grpc = map(json.loads, handler.handle([{"body": b"["}] * 2, context))
    assert by_http.keys() == {"code", "type", "message"}
    assert by_grpc["outputs"][0]["data"] == [by_http["message"]]
    assert by_http.items() <= by_grpc.items()
    assert by_grpc.keys() >= {"id", "model_name", "model_version"}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Request-Start": "t=99.5"}, 0.5),
        ({"x-request-start": "t=100"}, 0.0),
        ({"X-REQUEST-START": "99"}, 1.0),
        ({"X-Request-Start": "t=101"}, None),
        ({"X-Request-Start": "t=nan"}, None),
        ({"X-Request-Start": "t=-9e9"}, None),
        ({"X-Request-Start": "soon"}, None),
        ({}, None),
    ],
)
def test_how_long_a_request_was_under_way(headers: dict[str, str], expected: float | None) -> None:
    context = Context(Path(), 1)
    context.headers = [headers]
    assert queued(context, 0, now=100.0) == expected
