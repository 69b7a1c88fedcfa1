"""Prediction requests over HTTP, against the real server."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import torch
from PIL import Image

from tests.images import b64, dark_on_light, dearest_png, encode, picture, png
from tests.serving import ServerProcess
from training.data import Data

JSON = {"Content-Type": "application/json"}


def post(server: ServerProcess, model: str, body: Any = b"", **options: Any) -> requests.Response:
    if isinstance(body, dict | list):
        body, options["headers"] = json.dumps(body), JSON
    return requests.post(server.url(model), data=body, timeout=60, **options)


def labels(response: requests.Response) -> list[int]:
    assert response.status_code == 200, response.text
    return [prediction["label"] for prediction in response.json()["predictions"]]


@pytest.fixture(scope="module")
def seven(mnist_data: Data) -> torch.Tensor:
    return mnist_data.test.x[0]


class TestAccepted:
    @pytest.mark.parametrize("content_type", ["image/png", "application/json", "text/plain", "a/b"])
    def test_an_image_with_any_content_type(
        self, server: ServerProcess, seven: torch.Tensor, content_type: str
    ) -> None:
        response = post(server, "mnist", png(seven), headers={"Content-Type": content_type})
        assert labels(response) == [7]
        assert response.headers["Content-Type"] == "application/json"

    def test_response_shape(self, server: ServerProcess, seven: torch.Tensor) -> None:
        answer = post(server, "mnist", png(seven)).json()
        (prediction,) = answer.pop("predictions")
        assert answer == {"model": "mnist", "version": "1.0"}
        assert list(prediction) == ["label", "confidence", "probabilities"]
        assert len(prediction["probabilities"]) == 10
        assert sum(prediction["probabilities"]) == pytest.approx(1, abs=1e-6)
        assert prediction["confidence"] == max(prediction["probabilities"]) > 0.9

    @pytest.mark.parametrize(
        ("format_", "options"),
        [
            ("PNG", {}),
            ("JPEG", {"quality": 95}),
            ("BMP", {}),
            ("GIF", {}),
            ("WEBP", {"lossless": True}),
            ("WEBP", {"quality": 90}),
        ],
    )
    def test_every_image_format(
        self, server: ServerProcess, seven: torch.Tensor, format_: str, options: dict[str, Any]
    ) -> None:
        assert labels(post(server, "mnist", encode(picture(seven), format_, **options))) == [7]

    def test_the_first_frame_of_a_gif(self, server: ServerProcess, mnist_data: Data) -> None:
        frames = [picture(image) for image in mnist_data.test.x[:3]]
        gif = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert labels(post(server, "mnist", gif)) == [int(mnist_data.test.y[0])]

    def test_multipart_field(self, server: ServerProcess, seven: torch.Tensor) -> None:
        url = server.url("mnist")
        response = requests.post(url, files={"data": ("7.png", png(seven))}, timeout=60)
        assert labels(response) == [7]

    def test_the_version_in_the_path(self, server: ServerProcess, seven: torch.Tensor) -> None:
        assert labels(post(server, "mnist/1.0", png(seven))) == [7]

    def test_both_kinds_of_instances_in_order(
        self, server: ServerProcess, mnist_data: Data
    ) -> None:
        images, expected = mnist_data.test.x[:20], mnist_data.test.y[:20].tolist()
        instances = [b64(png(x)) if i % 2 else x.tolist() for i, x in enumerate(images)]
        assert labels(post(server, "mnist", {"instances": instances})) == expected

    def test_an_image_gets_the_same_numbers_in_every_encoding(
        self, server: ServerProcess, seven: torch.Tensor
    ) -> None:
        floats = [[level + 0.0 for level in row] for row in seven.tolist()]
        instances = {"instances": [b64(png(seven)), seven.tolist(), floats]}
        several = post(server, "mnist", instances).json()["predictions"]
        (alone,) = post(server, "mnist", png(seven)).json()["predictions"]
        for prediction in several:
            assert prediction["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-6)

    def test_fractions_are_not_rounded(self, server: ServerProcess, seven: torch.Tensor) -> None:
        halved = (seven / 2).tolist()
        floored = (seven // 2).tolist()
        response = post(server, "mnist", {"instances": [halved, floored]})
        first, second = response.json()["predictions"]
        assert first["probabilities"] != second["probabilities"]

    @pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
    def test_a_tensor_of_the_open_inference_protocol(
        self, server: ServerProcess, mnist_data: Data, datatype: str
    ) -> None:
        images = mnist_data.test.x[:3]
        data = images.flatten().tolist()
        tensor = {"name": "x", "shape": [3, 28, 28], "datatype": datatype, "data": data}
        answer = post(server, "mnist", {"id": "42", "inputs": [tensor]}).json()
        rows = post(server, "mnist", {"instances": images.tolist()}).json()["predictions"]
        label, probabilities = answer.pop("outputs")
        assert answer == {"model_name": "mnist", "model_version": "1.0", "id": "42"}
        assert label == {
            "name": "label",
            "shape": [3],
            "datatype": "INT64",
            "data": mnist_data.test.y[:3].tolist(),
        }
        assert (probabilities["shape"], probabilities["datatype"]) == ([3, 10], "FP32")
        expected = [number for row in rows for number in row["probabilities"]]
        assert probabilities["data"] == pytest.approx(expected, abs=1e-6)

    def test_maximum_number_of_instances(self, server: ServerProcess) -> None:
        corners = [[i // 2 % 2, i % 2] for i in range(1024)]
        expected = [a ^ b for a, b in corners]
        assert labels(post(server, "xor", {"instances": corners})) == expected

    def test_four_corners(self, server: ServerProcess) -> None:
        corners = [[0, 0], [0, 1], [1, 0], [1, 1]]
        predictions = post(server, "xor", {"instances": corners}).json()["predictions"]
        assert [prediction["label"] for prediction in predictions] == [0, 1, 1, 0]
        for prediction in predictions:
            assert prediction["confidence"] >= 0.9
            assert len(prediction["probabilities"]) == 2
            assert sum(prediction["probabilities"]) == pytest.approx(1, abs=1e-6)

    def test_large_numbers(self, server: ServerProcess) -> None:
        response = post(server, "xor", {"instances": [[1e30, -1e30], [-1e6, 1]]})
        for prediction in response.json()["predictions"]:
            assert sum(prediction["probabilities"]) == pytest.approx(1, abs=1e-6)

    def test_largest_image(self, server: ServerProcess) -> None:
        assert len(labels(post(server, "mnist", dearest_png()))) == 1

    def test_json_with_any_content_type(self, server: ServerProcess) -> None:
        body = json.dumps({"instances": [[0, 1]]})
        for content_type in ("text/plain", "application/octet-stream"):
            response = post(server, "xor", body, headers={"Content-Type": content_type})
            assert labels(response) == [1]


class TestAccuracy:
    def test_300_images_of_the_test_set(self, server: ServerProcess, mnist_data: Data) -> None:
        images, expected = mnist_data.test.x[:300], mnist_data.test.y[:300].tolist()
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda x: labels(post(server, "mnist", png(x)))[0], images))
        correct = sum(a == e for a, e in zip(answers, expected, strict=True))
        assert correct >= 297

    @pytest.mark.parametrize(
        "transform",
        [
            pytest.param(lambda d: dark_on_light(d, (28, 28), (0, 0)), id="dark on light"),
            pytest.param(lambda d: dark_on_light(d, (120, 90), (70, 5)), id="off-centre"),
            pytest.param(
                lambda d: dark_on_light(d.resize((700, 700)), (1000, 800), (20, 60)), id="large"
            ),
            pytest.param(
                lambda d: Image.merge("LA", (Image.new("L", d.size, 0), d)), id="ink on alpha"
            ),
            pytest.param(lambda d: d.resize((280, 280)).convert("RGB"), id="light on dark"),
        ],
    )
    def test_images_that_are_not_in_mnist_form(
        self,
        server: ServerProcess,
        mnist_data: Data,
        transform: Callable[[Image.Image], Image.Image],
    ) -> None:
        images, expected = mnist_data.test.x[300:400], mnist_data.test.y[300:400].tolist()
        instances = [b64(encode(transform(picture(image)))) for image in images]
        answers = [
            label
            for start in range(0, len(instances), 10)
            for label in labels(post(server, "mnist", {"instances": instances[start : start + 10]}))
        ]
        correct = sum(a == e for a, e in zip(answers, expected, strict=True))
        assert correct >= 97


def huge_png(width: int, height: int) -> bytes:
    return encode(Image.new("1", (width, height)))


def specks() -> bytes:
    page = Image.new("L", (1000, 1000), 255)
    page.putpixel((200, 200), 0)
    page.putpixel((800, 800), 0)
    return encode(page)


TENSOR = {"name": "x", "shape": [1, 2], "datatype": "FP32"}
REFUSED: list[tuple[str, Any, int, str]] = [
    ("xor", {"instances": [[0, 1], [1, 2, 3]]}, 400, "instances[1]: expected 2 numbers, got 3"),
    ("xor", {"instances": [[0, "1"]]}, 400, "instances[0][1]: expected a number, got a string"),
    ("xor", {"instances": [[0, True]]}, 400, "instances[0][1]: expected a number, got true"),
    ("xor", {"instances": [[0, None]]}, 400, "instances[0][1]: expected a number, got null"),
    ("xor", {"instances": [0]}, 400, "instances[0]: expected 2 numbers, got a number"),
    ("xor", {"instances": []}, 400, "instances: expected 1 to 1024, got 0"),
    ("xor", {"instances": {}}, 400, "instances: expected a list, got an object"),
    ("xor", {"inputs": []}, 400, "inputs: expected a list with one tensor"),
    ("xor", {"data": []}, 400, 'expected a JSON object with "instances" or "inputs"'),
    ("xor", [[0, 1]], 400, 'expected a JSON object with "instances"'),
    ("xor", b'{"instances": [[0, NaN]]}', 400, "NaN is not a JSON number"),
    ("xor", b'{"instances": [[0, -Infinity]]}', 400, "-Infinity is not a JSON number"),
    ("xor", b'{"instances": [[0, 1e999]]}', 400, "expected a finite number in float32's range"),
    ("xor", {"instances": [[1e300, 1]]}, 400, "-3.4e+38 to 3.4e+38, got 1e+300"),
    ("xor", {"instances": [[3e38, -3e38]]}, 400, "the model overflows float32 on these numbers"),
    ("xor", {"inputs": [TENSOR | {"data": [0, -1e39]}]}, 400, "inputs[0].data[1]: expected a fin"),
    ("xor", b'{"instances": [[0, 1' + b"0" * 400 + b"]]}", 400, "expected a finite number"),
    ("xor", b'{"instances": [[0, 1' + b"0" * 5000 + b"]]}", 400, "not valid JSON"),
    ("xor", b'{"instances": [[0, 1]', 400, "not valid JSON"),
    ("xor", b"\xff\xfe", 400, "not valid JSON"),
    ("xor", b"[" * 100_000, 400, "nested too deeply"),
    ("xor", {"instances": [[0, 1]] * 1025}, 413, "instances: expected 1 to 1024, got 1025"),
    ("xor", b" " * ((1 << 20) + 1), 413, "the body is over the limit of 1048576 bytes"),
    ("mnist", b"\x89PNG" + b"\0" * (1 << 20), 413, "the body is over the limit"),
    ("mnist", huge_png(4097, 10), 413, "the image is 4097x10; the limit is 4096 pixels a side"),
    ("mnist", huge_png(10, 60_000), 413, "the image is 10x60000"),
    ("mnist", {"instances": [b64(huge_png(4096, 4096))] * 2}, 413, "the limit of a request is 167"),
    ("mnist", {"instances": [b64(huge_png(5000, 5000))]}, 413, "instances[0].b64: the image is"),
    ("mnist", b"not an image", 415, "not JSON and not a supported image: expected one of PNG"),
    ("mnist", encode(Image.new("L", (28, 28)), "TIFF"), 415, "not a supported image"),
    ("mnist", {"instances": [b64(b"nothing")]}, 415, "instances[0].b64: not a supported image"),
    ("mnist", {"instances": [{"b64": "!"}]}, 400, "instances[0].b64: not valid base64"),
    ("mnist", {"instances": [{"b64": 1}]}, 400, 'instances[0]: expected {"b64": "..."}'),
    ("mnist", {"instances": [{"url": ""}]}, 400, 'instances[0]: expected {"b64": "..."}'),
    ("mnist", {"instances": [[[0] * 28] * 27]}, 400, "expected 28 rows, got 27"),
    ("mnist", {"instances": [[[0] * 28] * 27 + [[0]]]}, 400, "[27]: expected 28 numbers, got 1"),
    ("mnist", {"instances": [[[0] * 27 + [256]] * 28]}, 400, "a number from 0 to 255, got 256"),
    ("mnist", {"instances": [[[0] * 27 + [-1]] * 28]}, 400, "a number from 0 to 255, got -1"),
    ("mnist", huge_png(100, 100), 400, "the image is blank"),
    ("mnist", specks(), 400, "the image is blank"),
    ("mnist", encode(Image.new("L", (28, 28), 9)), 400, "the image is blank"),
    ("mnist", encode(Image.new("RGBA", (50, 50))), 400, "the image is blank"),
    ("mnist", encode(Image.effect_noise((90, 90), 60))[:900], 400, "cannot be decoded"),
    ("mnist", encode(Image.effect_noise((90, 90), 60), "JPEG")[:900], 400, "cannot be decoded"),
    ("mnist", b"", 400, "the request has no body"),
    ("nothing", b"x", 404, "there is no model nothing; there are: mnist, xor"),
    ("mnist/9.9", b"x", 404, "model mnist has no version 9.9; there are: 1.0"),
]


class TestRefused:
    @pytest.mark.parametrize(
        ("model", "body", "code", "message"), REFUSED, ids=[row[3][:50] for row in REFUSED]
    )
    def test_status_and_message(
        self, server: ServerProcess, model: str, body: Any, code: int, message: str
    ) -> None:
        response = post(server, model, body)
        assert response.status_code == code, response.text
        error = response.json()
        assert list(error) == ["code", "type", "message"]
        assert error["code"] == code
        assert error["type"].endswith("Exception")
        assert message in error["message"]

    def test_form_field_with_another_name(self, server: ServerProcess) -> None:
        response = requests.post(server.url("mnist"), files={"file": b"x"}, timeout=60)
        assert response.status_code == 400
        assert "a multipart field 'data'; got the form fields 'file'" in response.json()["message"]

    def test_form_content_type(self, server: ServerProcess, seven: torch.Tensor) -> None:
        """The default of curl's -d and --data-binary, urllib, Java and PHP."""
        headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
        assert labels(post(server, "xor", b'{"instances": [[0, 1]]}', headers=headers)) == [1]
        assert labels(post(server, "mnist", png(seven), headers=headers)) == [7]

    def test_body_over_the_size_limit(self, server: ServerProcess) -> None:
        assert post(server, "mnist", b"x" * (20 << 20)).status_code == 413

    @pytest.mark.parametrize(
        "path", ["/models", "/models?url=xor.mar", "/ping", "/api-description"]
    )
    def test_torchserve_apis_are_not_exposed(self, server: ServerProcess, path: str) -> None:
        response = requests.post(server.inference + path, timeout=60)
        assert response.status_code == 404
        assert response.json()["type"] == "ResourceNotFoundException"

    def test_other_methods(self, server: ServerProcess) -> None:
        response = requests.get(server.url("mnist"), timeout=60)
        assert response.status_code == 405
        assert response.headers["Allow"] == "POST, PUT"
        assert response.json()["message"] == "expected POST or PUT"


class TestTogether:
    def test_bad_requests_do_not_harm_their_neighbours(
        self, server: ServerProcess, mnist_data: Data
    ) -> None:
        good = [png(image) for image in mnist_data.test.x[:40]]
        alone = [post(server, "mnist", body).json()["predictions"][0] for body in good]
        bad = [(body, code) for model, body, code, _ in REFUSED if model == "mnist"]
        mixed: list[tuple[Any, int]] = []
        for index, body in enumerate(good):
            mixed += [(body, 200), bad[index % len(bad)]]
        with ThreadPoolExecutor(32) as pool:
            responses = list(pool.map(lambda item: post(server, "mnist", item[0]), mixed))
        assert [response.status_code for response in responses] == [code for _, code in mixed]
        for response, expected in zip(responses[::2], alone, strict=True):
            (prediction,) = response.json()["predictions"]
            assert prediction["label"] == expected["label"]
            assert prediction["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)
