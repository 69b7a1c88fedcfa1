import json
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from prometheus_client import CollectorRegistry

from handler import v2
from handler.allowance import Allowance
from handler.batching import BatchHandler, Query, headers_of, id_of, is_http, queued
from handler.card import CARD_FILE, TORCHSCRIPT_FILE
from handler.images import Picture
from handler.mnist import MnistHandler
from handler.scripted import CpuForward
from handler.xor import XorHandler
from tests.images import b64, dark_on_light, dearest_png, encode, picture, png
from tests.untrained import Context, make_card
from training.export import ServedModel, to_torchscript

Load = Callable[[type[BatchHandler], str], BatchHandler]


def ask(handler: BatchHandler, *bodies: Any) -> list[tuple[int, dict[str, Any]]]:
    """Send bodies as one batch, and return the status and document of each answer."""
    context = Context(Path(), len(bodies))
    answers = handler.handle([{"body": body} for body in bodies], context)
    assert context.content_types == ["application/json"] * len(bodies)
    for code, headers in zip(context.codes, context.response_headers, strict=True):
        assert headers.keys() == ({"Retry-After"} if code == 503 else set())
    return [(c, strict_json(a)) for c, a in zip(context.codes, answers, strict=True)]


def strict_json(text: bytes) -> Any:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def noise(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)


def test_answers_keep_the_order_of_requests(loaded: Load) -> None:
    handler = loaded(XorHandler, "xor")
    good = b'{"instances": [[0, 1], [1, 1]]}'
    answers = ask(handler, good, b"{", good, b'{"instances": [[1]]}', b'{"instances": [[0, 0]]}')
    assert [code for code, _ in answers] == [200, 400, 200, 400, 200]
    assert [len(answer.get("predictions", [])) for _, answer in answers] == [2, 0, 2, 0, 1]
    assert answers[0] == answers[2]
    assert answers[3][1]["message"] == "instances[0]: expected 2 numbers, got 1"


@pytest.mark.parametrize("size", [2, 3, 4, 7, 64, CpuForward.max_batch + 3])
def test_numbers_do_not_depend_on_the_batch(loaded: Load, size: int) -> None:
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


def test_a_batch_of_bad_requests(loaded: Load) -> None:
    answers = ask(loaded(XorHandler, "xor"), b"", b"[]")
    assert [code for code, _ in answers] == [400, 400]


def test_a_handler_defect_fails_only_the_request_that_meets_it(
    loaded: Load, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handler = loaded(XorHandler, "xor")
    parse = handler.parse

    def defective(request: Any, headers: Any) -> Query:
        if request["body"] == b"trigger":
            raise ZeroDivisionError
        return parse(request, headers)

    monkeypatch.setattr(handler, "parse", defective)
    answers = ask(handler, b'{"instances": [[0, 1]]}', b"trigger")
    assert [code for code, _ in answers] == [200, 500]
    assert "ZeroDivisionError" in caplog.text
    assert "request id-1 of model xor could not be parsed" in caplog.text


@pytest.mark.parametrize(
    ("failure", "code"),
    [(RuntimeError("x"), 500), (torch.OutOfMemoryError("x"), 507), (MemoryError(), 507)],
)
def test_a_failed_forward_is_not_an_overload_and_does_not_end_the_worker(
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


def test_a_picture_that_does_not_fit_into_memory_is_not_called_damaged(
    loaded: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = loaded(MnistHandler, "mnist")
    (image,) = noise(1)

    def fail(_: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(PngImageFile, "load", fail)
    large = encode(picture(image).resize((56, 56)))
    answers = ask(handler, large, json.dumps({"instances": [image.tolist()]}).encode())
    assert [code for code, _ in answers] == [507, 200]
    assert "the request does not fit into memory" in answers[0][1]["message"]


def test_a_body_that_torchserve_has_decoded(loaded: Load) -> None:
    """By default TorchServe decodes JSON and text before the handler."""
    handler = loaded(MnistHandler, "mnist")
    (image,) = noise(1)
    document = {"instances": [b64(png(image)), image.tolist()]}
    raw, decoded, text = ask(handler, json.dumps(document).encode(), document, json.dumps(document))
    assert raw == decoded == text
    assert raw[0] == 200
    assert [code for code, _ in ask(handler, [1], 5, None, "text")] == [400, 400, 400, 415]


def test_an_altered_torchscript_is_not_loaded(loaded: Load, tmp_path: Path) -> None:
    handler = loaded(XorHandler, "xor")
    with (tmp_path / TORCHSCRIPT_FILE).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match="the archive was altered or damaged"):
        handler.initialize(Context(tmp_path))


def test_an_error_for_a_grpc_request_reads_as_an_answer(loaded: Load) -> None:
    handler = loaded(XorHandler, "xor")
    context = Context(Path(), 2)
    context.headers[1] = {}
    by_http, by_grpc = map(json.loads, handler.handle([{"body": b"["}] * 2, context))
    assert by_http.keys() == {"code", "type", "message"}
    assert by_grpc["outputs"][0]["data"] == [by_http["message"]]
    assert by_http.items() <= by_grpc.items()
    assert by_grpc.keys() >= {"id", "model_name", "model_version"}


def send(
    handler: BatchHandler, *requests: tuple[bytes, dict[str, str]]
) -> tuple[list[bytes], Context]:
    """Send bodies with headers as one batch."""
    context = Context(Path(), len(requests))
    for index, (_, headers) in enumerate(requests):
        context.headers[index] |= headers
    return handler.handle([{"body": body} for body, _ in requests], context), context


EXPLAIN = {"explain": "True"}  # what TorchServe adds on its path /explanations
V2 = {"x-protocol": "v2"}
TENSOR = {"name": "x", "shape": [1, 2], "datatype": "FP32"}


def test_binary_tensors_there_and_back(loaded: Load) -> None:
    handler = loaded(XorHandler, "xor")
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32"}
    parameters = {"binary_data_size": 16}
    binary_out = {"parameters": {"binary_data_output": True}}
    head = json.dumps({"inputs": [tensor | {"parameters": parameters}]} | binary_out).encode()
    body = head + array("f", [0, 1, 1, 1]).tobytes()
    length = {"Inference-Header-Content-Length": str(len(head))}
    good = b'{"instances": [[0, 1], [1, 1]]}'
    (answer, plain, refusal), context = send(handler, (body, V2 | length), (good, {}), (body, V2))
    assert context.codes == [200, 200, 400]
    assert context.content_types == ["application/octet-stream", *["application/json"] * 2]
    assert context.response_headers[1:] == [{}, {}]
    size = int(context.response_headers[0]["Inference-Header-Content-Length"])
    assert [output["name"] for output in json.loads(answer[:size])["outputs"]] == list(v2.OUTPUTS)
    predictions = json.loads(plain)["predictions"]
    assert array("q", answer[size : size + 16]).tolist() == [p["label"] for p in predictions]
    expected = [number for p in predictions for number in p["probabilities"]]
    assert array("f", answer[size + 16 :]).tolist() == pytest.approx(expected, abs=1e-6)
    assert json.loads(refusal).keys() == {"code", "type", "error"}
    assert "not valid JSON" in json.loads(refusal)["error"]


@pytest.mark.parametrize("body", [b'{"instances": [[0, 1]]}', b"\x89PNG", b"[]"])
def test_a_path_of_the_open_inference_protocol_takes_nothing_else(
    loaded: Load, body: bytes
) -> None:
    (answer,), context = send(loaded(MnistHandler, "mnist"), (body, V2))
    assert context.codes == [400]
    assert json.loads(answer)["error"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_body_is_named(loaded: Load, encoding: str) -> None:
    (answer,), context = send(loaded(XorHandler, "xor"), (b"x", {"Content-Encoding": encoding}))
    assert context.codes == [415]
    assert f"got the Content-Encoding '{encoding}'" in json.loads(answer)["message"]


def test_explanations_stand_in_their_place_in_a_batch(
    loaded: Load, registry: CollectorRegistry
) -> None:
    handler = loaded(MnistHandler, "mnist")
    digits = noise(2)
    bodies = [png(digits[0]), json.dumps({"instances": digits.tolist()}).encode()]
    answers, context = send(
        handler, (bodies[0], {}), (bodies[0], EXPLAIN), (b"{", EXPLAIN), (bodies[1], EXPLAIN)
    )
    assert context.codes == [200, 200, 400, 200]
    predicted, one, _, two = map(strict_json, answers)
    assert one.keys() == {"model", "version", "explanations"}
    for digit, explanation in zip(digits, two["explanations"], strict=True):
        assert explanation["input"] == digit.tolist()
        assert [len(row) for row in explanation["attributions"]] == [28] * 28
        assert any(map(any, explanation["attributions"]))
    (prediction,) = predicted["predictions"]
    for explanation in (*one["explanations"], two["explanations"][0]):
        assert explanation.items() >= {"label": prediction["label"]}.items()
        assert explanation["probabilities"] == pytest.approx(prediction["probabilities"], abs=1e-6)
    labels = {"model": "mnist", "version": "1.0"}
    assert registry.get_sample_value("inference_explanations_total", labels) == 3
    assert registry.get_sample_value("inference_instances_total", labels) == 1
    assert registry.get_sample_value("inference_confidence_ratio_count", labels) == 1
    stage = labels | {"stage": "explain"}
    assert registry.get_sample_value("inference_stage_seconds_count", stage) == 2


def test_explanations_of_a_tensor(loaded: Load) -> None:
    """Of either type, and answered as those of instances are."""
    handler = loaded(XorHandler, "xor")
    bodies = [
        json.dumps({"inputs": [TENSOR | {"datatype": datatype, "data": [1, 0]}]}).encode()
        for datatype in ("FP32", "UINT8")
    ]
    answers, _ = send(handler, *((body, EXPLAIN) for body in bodies))
    first, second = (strict_json(answer)["explanations"] for answer in answers)
    assert first == second
    assert all(first[0]["attributions"])


def test_more_instances_than_are_explained(loaded: Load) -> None:
    handler = loaded(XorHandler, "xor")
    bodies = [json.dumps({"instances": [[0, 1]] * count}).encode() for count in (16, 17)]
    (_, refusal), context = send(handler, *((body, EXPLAIN) for body in bodies))
    assert context.codes == [200, 413]
    assert strict_json(refusal)["message"] == "expected 1 to 16 instances to explain, got 17"


def test_explanations_beyond_the_allowance_are_put_off(loaded: Load) -> None:
    handler = loaded(XorHandler, "xor")
    good = b'{"instances": [[0, 1]]}'
    # The first is seen to take 5 s, and the second is looked at a second later.
    times = iter([*[0.0] * 4, 5.0, 6.0])
    handler.allowance = Allowance(times.__next__)
    answers, context = send(handler, (good, EXPLAIN), (good, EXPLAIN), (good, {}))
    assert context.codes == [200, 503, 200]
    assert context.response_headers[1] == {"Retry-After": "4"}
    assert "predictions" in strict_json(answers[2])


def test_explanations_are_put_off_before_they_are_read(loaded: Load) -> None:
    handler = loaded(XorHandler, "xor")
    handler.allowance._paid_off = 1e12
    _, context = send(handler, (b"not JSON", EXPLAIN), (b"not JSON", {}))
    assert context.codes == [503, 400]


def test_an_explanation_that_fails_does_so_alone(
    loaded: Load, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handler = loaded(XorHandler, "xor")
    good = b'{"instances": [[0, 1]]}'

    def fail(*_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(handler, "explain", fail)
    _, context = send(handler, (good, EXPLAIN), (good, {}))
    assert context.codes == [507, 200]
    assert "of requests id-0" in caplog.text


class Logarithm(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.log()


def load_network(directory: Path, network: torch.nn.Module) -> BatchHandler:
    """Load a network that takes two numbers to two logits."""
    served = ServedModel(torch.nn.Identity(), network).eval()
    content = to_torchscript(served, torch.ones(3, 2))
    (directory / TORCHSCRIPT_FILE).write_bytes(content)
    (directory / CARD_FILE).write_text(make_card("xor", content).to_json())
    handler = XorHandler()
    handler.initialize(Context(directory))
    return handler


@pytest.mark.parametrize(
    "body",
    [
        {"instances": [[-1, 1]]},
        {"instances": [[1, 1], [-1, 1]]},
        {"inputs": [TENSOR | {"data": [-1, 1]}]},
    ],
)
def test_nan_output_fails_its_request_only(
    tmp_path: Path, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, body: Any
) -> None:
    handler = load_network(tmp_path, Logarithm())
    good = {"instances": [[1, 3]]}
    answers = ask(handler, good, body, good)
    assert [code for code, _ in answers] == [200, 500, 200]
    assert answers[1][1]["message"] == "the model's output for this request is not finite"
    assert "model xor 1.0: the output for request id-1 is not finite" in caplog.text
    for _, answer in (answers[0], answers[2]):
        assert answer["predictions"][0]["probabilities"] == pytest.approx([0.25, 0.75])
    labels = {"model": "xor", "version": "1.0"}
    assert registry.get_sample_value("inference_instances_total", labels) == 2
    assert registry.get_sample_value("inference_confidence_ratio_sum", labels) == pytest.approx(1.5)


@pytest.mark.parametrize(
    "body",
    [{"instances": [[0, 1], [-3e38, -3e38]]}, {"inputs": [TENSOR | {"data": [3e38, 3e38]}]}],
)
@pytest.mark.usefixtures("registry")
def test_numbers_that_overflow_inside_the_model_are_a_bad_request(
    tmp_path: Path, body: Any
) -> None:
    network = torch.nn.Linear(2, 2)
    network.weight.data = torch.tensor([[4.0, -4.0], [-4.0, 4.0]])
    handler = load_network(tmp_path, network)
    bad, good = ask(handler, body, {"instances": [[0, 1]]})
    assert (bad[0], good[0]) == (400, 200)
    assert "overflows float32 on these numbers, of which the largest is 3e+38" in bad[1]["message"]


PAGE = encode(dark_on_light(Image.new("L", (900, 2000), 255), (4096, 4096), (999, 99)).convert("1"))


def test_the_pixel_budget_of_a_request(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is checked before any pixel is decoded, and one picture of the largest size fits."""
    handler = loaded(MnistHandler, "mnist")
    handler.allowance = Allowance(lambda: 0.0)  # no time passes, so nothing is put off
    digit = png(noise(1)[0])
    assert ask(handler, PAGE)[0][0] == 200
    assert ask(handler, {"instances": [b64(digit), b64(PAGE), noise(1)[0].tolist()]})[0][0] == 200
    assert isinstance(handler, MnistHandler)
    handler.allowance._paid_off = 1e12  # overloaded or not
    monkeypatch.setattr(Picture, "decode", lambda _: pytest.fail("decoded"))
    small = encode(Image.linear_gradient("L").resize((100, 10)))
    answers = ask(handler, {"instances": [b64(PAGE), b64(digit), b64(small)]}, digit)
    assert [code for code, _ in answers] == [413, 200]
    assert answers[0][1]["message"] == (
        "instances[2].b64: the images up to this one have 16778216 pixels; the limit of a request "
        "is 16777216"
    )


def test_dear_requests_beyond_the_allowance_are_put_off(loaded: Load) -> None:
    """A batch decodes one; what is cheap is answered all the same, with the same numbers."""
    handler = loaded(MnistHandler, "mnist")
    assert isinstance(handler, MnistHandler)
    dear, digit = dearest_png(2048), png(noise(1)[0])
    canvas = encode(dark_on_light(picture(noise(1)[0]), (400, 400), (99, 99)))
    alone = [ask(handler, body)[0][1]["predictions"][0] for body in (digit, canvas)]
    # The first picture is seen to take 5 s, and the others are looked at a second later.
    times = iter([0.0, 0.0, 5.0, *[6.0] * 3])
    handler.allowance = Allowance(times.__next__)
    answers = ask(handler, dear, dear, digit, {"instances": [b64(dear)]}, canvas, dear)
    assert [code for code, _ in answers] == [200, 503, 200, 503, 200, 503]
    for (_, answer), prediction in zip((answers[2], answers[4]), alone, strict=True):
        probabilities = answer["predictions"][0]["probabilities"]
        assert probabilities == pytest.approx(prediction["probabilities"], abs=1e-6)
    assert answers[1][1]["type"] == "ServiceUnavailableException"
    assert "retry after 4 s" in answers[1][1]["message"]


def test_many_small_pictures_are_put_off_before_all_headers_are_read(
    loaded: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = loaded(MnistHandler, "mnist")
    assert isinstance(handler, MnistHandler)
    handler.allowance._paid_off = 1e12
    small = encode(dark_on_light(picture(noise(1)[0]), (40, 40), (6, 6)))
    opened: list[bytes] = []
    open_picture = Picture.__init__

    def count(found: Picture, data: bytes) -> None:
        opened.append(data)
        open_picture(found, data)

    monkeypatch.setattr(Picture, "__init__", count)
    answers = ask(handler, {"instances": [b64(small)] * 1024}, png(noise(1)[0]))
    assert [code for code, _ in answers] == [503, 200]
    assert len(opened) == 64


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("t=1999999999.5", 0.5),
        ("t=2000000000", 0.0),
        ("1999999999", 1.0),
        ("t=1999999999500", 0.5),
        ("t=1999999999500000", 0.5),
        ("t=2000000001", None),
        ("t=nan", None),
        ("t=-9e9", None),
        ("t=1.5", None),
        ("soon", None),
    ],
)
def test_queued_seconds(value: str, expected: float | None) -> None:
    assert queued({"x-request-start": value}, now=2e9) == expected


def test_headers_of_any_case() -> None:
    context = Context(Path(), 1)
    context.headers = [{"X-Request-ID": "a", "HOST": "b"}]
    headers = headers_of(context, 0)
    assert headers == {"x-request-id": "a", "host": "b"}
    assert queued(headers, now=2e9) is None
    assert id_of(headers) == "a"
    assert is_http(headers)
    assert not is_http({"grpc": "x"})
