"""Explanations over HTTP, and whether they explain."""

import json
import statistics
from typing import Any

import pytest
import requests
import torch

from tests.images import b64, dark_on_light, encode, picture, png
from tests.serving import ServerProcess
from training.data import Data

IMAGES = 200
AT_A_TIME = 16


def explain(server: ServerProcess, model: str, body: Any, **options: Any) -> list[dict[str, Any]]:
    data = json.dumps(body) if isinstance(body, dict) else body
    url = f"{server.inference}/explanations/{model}"
    response = requests.post(url, data=data, timeout=60, **options)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert list(answer) == ["model", "version", "explanations"]
    explanations: list[dict[str, Any]] = answer["explanations"]
    return explanations


def probabilities(server: ServerProcess, images: torch.Tensor) -> torch.Tensor:
    response = requests.post(
        server.url("mnist"), json={"instances": images.tolist()}, timeout=60
    ).json()
    return torch.tensor([prediction["probabilities"] for prediction in response["predictions"]])


def test_deleting_what_ranks_highest_lowers_the_probability_most(
    server: ServerProcess, mnist_data: Data
) -> None:
    """The deletion test of Petsiuk, Das and Saenko 2018 ("RISE"), with random ink beside it.

    Deleted is a tenth of the ink, which is each pixel that is not 0.
    """
    images = mnist_data.test.x[:IMAGES]
    generator = torch.Generator().manual_seed(0)
    falls: list[tuple[float, float]] = []
    for part in images.split(AT_A_TIME):
        explanations = explain(server, "mnist", {"instances": part.tolist()})
        by_rank, by_chance = part.flatten(1).clone(), part.flatten(1).clone()
        for row, explanation in enumerate(explanations):
            assert explanation["input"] == part[row].tolist()
            ink = part[row].flatten().nonzero().flatten()
            attributions = torch.tensor(explanation["attributions"]).flatten()[ink]
            count = round(len(ink) / 10)
            by_rank[row, ink[attributions.argsort(descending=True)[:count]]] = 0
            by_chance[row, ink[torch.randperm(len(ink), generator=generator)[:count]]] = 0
        labels = torch.tensor([[explanation["label"]] for explanation in explanations])
        before, ranked, random = (
            probabilities(server, pixels.view(-1, 28, 28)).gather(1, labels).flatten()
            for pixels in (part, by_rank, by_chance)
        )
        falls += zip((before - ranked).tolist(), (before - random).tolist(), strict=True)
    ranked_falls, random_falls = zip(*falls, strict=True)
    differences = [ranked - random for ranked, random in falls]
    mean = statistics.mean(differences)
    t = mean / (statistics.stdev(differences) / IMAGES**0.5)
    print(
        f"{IMAGES} images, a tenth of the ink deleted: the probability falls by "
        f"{statistics.mean(ranked_falls):.3f} by rank, {statistics.mean(random_falls):.3f} at "
        f"random; paired t {t:.1f}"
    )
    assert len(differences) == IMAGES
    assert mean > 0.1
    assert t > 3.3  # p < 0.001


def test_every_form_of_a_digit_has_the_same_explanation(
    server: ServerProcess, mnist_data: Data
) -> None:
    seven = mnist_data.test.x[0]
    forms = [
        explain(server, "mnist", png(seven)),
        explain(server, "mnist/1.0", {"instances": [b64(png(seven))]}),
        explain(server, "mnist", None, files={"data": png(seven)}),
    ]
    tensor = {"name": "x", "shape": [1, 28, 28], "datatype": "UINT8"}
    forms.append(explain(server, "mnist", {"inputs": [tensor | {"data": seven.tolist()}]}))
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 784}}]}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    body = head + seven.numpy().tobytes()
    forms.append(explain(server, "mnist", body, headers=length))
    for (explanation,) in forms:
        assert explanation["label"] == 7
        assert explanation["input"] == seven.tolist()
        assert explanation["attributions"] == [
            pytest.approx(row, abs=1e-6) for row in forms[0][0]["attributions"]
        ]


def test_the_picture_that_the_model_saw(server: ServerProcess, mnist_data: Data) -> None:
    """Of a photograph it is not what was sent."""
    photograph = dark_on_light(
        picture(mnist_data.test.x[0]).resize((300, 300)), (500, 400), (90, 9)
    )
    (explanation,) = explain(server, "mnist", encode(photograph, "JPEG"))
    seen = torch.tensor(explanation["input"])
    assert seen.shape == (28, 28)
    assert seen.max() == 255
    assert (seen[:4] == 0).all()
    again = probabilities(server, seen.unsqueeze(0))[0]
    assert again.tolist() == pytest.approx(explanation["probabilities"], abs=1e-6)


def test_explanations_in_v1(server: ServerProcess) -> None:
    """Each of the two numbers of XOR speaks for every answer."""
    corners = [[0, 0], [0, 1], [1, 0], [1, 1]]
    url = f"{server.inference}/v1/models/xor:explain"
    explanations = requests.post(url, json={"instances": corners}, timeout=60).json()[
        "explanations"
    ]
    assert [explanation["label"] for explanation in explanations] == [0, 1, 1, 0]
    assert [explanation["input"] for explanation in explanations] == corners
    for explanation in explanations:
        assert min(explanation["attributions"]) > 0.1


def test_only_the_path_asks_for_an_explanation(server: ServerProcess) -> None:
    body = {"instances": [[0, 1]]}
    headers = {"explain": "True"}
    answer = requests.post(server.url("xor"), json=body, headers=headers, timeout=60).json()
    assert "predictions" in answer


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"instances": [[0, 1]] * 17}, 413, "expected 1 to 16 instances to explain, got 17"),
        ({"instances": [[0]]}, 400, "instances[0]: expected 2 numbers, got 1"),
        ({}, 400, 'expected a JSON object with "instances" or "inputs"'),
    ],
)
def test_what_is_not_explained(
    server: ServerProcess, body: dict[str, Any], code: int, message: str
) -> None:
    url = f"{server.inference}/explanations/xor"
    response = requests.post(url, json=body, timeout=60)
    assert response.status_code == code
    assert response.json().keys() == {"code", "type", "message"}
    assert response.json()["message"] == message
