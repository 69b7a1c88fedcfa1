"""Photographs, and the image path on them: by the digit it finds, which must be the one taken."""

import io

import pytest
import torch
from PIL import Image

from handler import images
from handler.errors import RequestError
from handler.images import Picture
from tests.images import encode, picture
from training.photographs import CHANCES, Ink, photographs


@pytest.fixture
def digits() -> torch.Tensor:
    """A seven, a zero and a two as MNIST has them: strokes of three pixels, four from the frame."""
    drawn = torch.zeros(3, 28, 28, dtype=torch.uint8)
    drawn[0, 4:7, 7:21] = drawn[0, 4:24, 17:20] = 255
    drawn[1, 4:24, 8:20] = 255
    drawn[1, 7:21, 11:17] = 0
    drawn[2, 4:7, 8:20] = drawn[2, 13:16, 8:20] = drawn[2, 21:24, 8:20] = 255
    drawn[2, 4:16, 17:20] = drawn[2, 13:24, 8:11] = 255
    return drawn


def normalised(data: bytes) -> torch.Tensor:
    numbers = Picture(data).decode()
    return torch.frombuffer(numbers, dtype=torch.uint8).reshape(28, 28)


def similarity(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


def found(digits: torch.Tensor, files: list[bytes]) -> int:
    """How many were found: more like the digit than like any other, whose places differ a little
    as the photographs are turned by up to 8 degrees.
    """
    plain = [normalised(encode(picture(digit).convert("RGB"))) for digit in digits]
    count = 0
    for index, data in enumerate(files):
        try:
            seen = normalised(data)
        except RequestError:
            continue
        scores = [similarity(seen, other) for other in plain]
        count += max(scores) == scores[index % len(plain)] and max(scores) > 0.5
    return count


@pytest.mark.parametrize("ink", ["dark", "light"])
@pytest.mark.parametrize("disturbance", sorted(CHANCES))
def test_each_disturbance_alone(digits: torch.Tensor, disturbance: str, ink: Ink) -> None:
    files = list(photographs(digits.repeat(4, 1, 1), 1, ink, {disturbance: 1}))
    assert found(digits, files) >= 11


@pytest.mark.parametrize("ink", ["dark", "light"])
def test_all_disturbances(digits: torch.Tensor, ink: Ink) -> None:
    files = list(photographs(digits.repeat(8, 1, 1), 2, ink))
    assert found(digits, files) >= 22


@pytest.mark.parametrize("degrees", range(0, 180, 30))
def test_a_narrow_shadow_across_a_digit(digits: torch.Tensor, degrees: int) -> None:
    """It is as wide as four strokes, and its paper 0.6 times as bright; strokes are 0.3."""
    y, x = torch.meshgrid(torch.arange(300.0) - 150, torch.arange(300.0) - 150, indexing="ij")
    angle = torch.tensor(float(degrees)).deg2rad()
    distance = (x * angle.cos() + y * angle.sin()).abs()
    light = 0.6 + 0.4 * torch.sigmoid((distance - 40) / 8)
    grain = 5 * torch.randn(300, 300, generator=torch.Generator().manual_seed(degrees))
    for digit in digits:
        paper = Image.new("L", (300, 300), 220)
        paper.paste(60, (50, 50), picture(digit).resize((200, 200)))
        levels = torch.frombuffer(bytearray(paper.tobytes()), dtype=torch.uint8).reshape(300, 300)
        shaded = (levels * light + grain).clamp(0, 255).to(torch.uint8)
        seen = normalised(encode(picture(shaded), "JPEG", quality=90))
        assert similarity(seen, normalised(encode(paper))) > 0.85


def test_an_empty_page_in_uneven_light_is_blank() -> None:
    light = Image.linear_gradient("L").resize((400, 300)).point([90 + v // 2 for v in range(256)])
    for page in (light, Image.blend(light, Image.effect_noise((400, 300), 20), 0.2)):
        with pytest.raises(RequestError, match="blank"):
            normalised(encode(page, "JPEG", quality=90))


def test_a_seed_gives_the_same_photographs(digits: torch.Tensor) -> None:
    files = list(photographs(digits, 3))
    assert list(photographs(digits[:2], 3)) == files[:2]
    assert next(photographs(digits, 4)) != files[0]
    assert next(photographs(digits, 3, "light")) != files[0]


def test_photographs_are_requests(digits: torch.Tensor) -> None:
    for data in photographs(digits, 5):
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "JPEG"
            assert max(image.size) <= images.MAX_SIDE
        assert len(data) <= 1 << 20


def test_a_disturbance_that_does_not_exist(digits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="no such disturbance: 'rain'; there are gradient, shadow"):
        next(photographs(digits, 1, chances={"rain": 1}))
