import contextlib
import io

import pytest
import torch
from PIL import Image, ImageDraw

from handler import images
from handler.errors import PayloadTooLargeError, RequestError, UnsupportedMediaTypeError
from tests.images import dark_on_light, encode, picture, png


def decode(data: bytes | bytearray) -> torch.Tensor:
    pixels = images.decode(data)
    assert pixels.typecode == "B"
    return torch.frombuffer(pixels, dtype=torch.uint8).reshape(28, 28)


@pytest.fixture
def seven() -> torch.Tensor:
    image = Image.new("L", (28, 28))
    ImageDraw.Draw(image).line([(8, 6), (20, 6), (13, 22)], fill=255, width=3)
    return torch.tensor(list(image.tobytes()), dtype=torch.uint8).reshape(28, 28)


def centre_of_mass(image: torch.Tensor) -> tuple[float, float]:
    weights = image.double()
    positions = torch.arange(28).double() + 0.5
    return (
        float(weights.sum(1) @ positions / weights.sum()),
        float(weights.sum(0) @ positions / weights.sum()),
    )


def similarity(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


def test_28x28_grayscale_is_left_as_it_is(seven: torch.Tensor) -> None:
    assert decode(png(seven)).equal(seven)
    assert decode(png(255 - seven)).equal(255 - seven)
    assert decode(encode(picture(seven), "BMP")).equal(seven)


def test_one_bit_28x28_is_left_as_it_is(seven: torch.Tensor) -> None:
    bits = picture(seven).point([255 * (v > 99) for v in range(256)]).convert("1")
    assert decode(encode(bits)).equal(torch.where(seven > 99, 255, 0).to(torch.uint8))


@pytest.mark.parametrize(
    ("size", "scale", "at"),
    [
        ((28, 28), 1, (0, 0)),
        ((200, 100), 2, (130, 20)),
        ((900, 900), 30, (10, 40)),
        ((28, 300), 1, (0, 260)),
    ],
)
def test_others_become_ink_on_black_centred_by_mass(
    seven: torch.Tensor, size: tuple[int, int], scale: int, at: tuple[int, int]
) -> None:
    digit = picture(seven)
    digit = digit.resize((28 * scale, 28 * scale), Image.Resampling.BICUBIC)
    normalised = decode(encode(dark_on_light(digit, size, at)))
    rows, columns = (normalised.sum(1) > 0), (normalised.sum(0) > 0)
    assert int(max(rows.sum(), columns.sum())) == 20
    assert all(abs(13.5 + 0.5 - centre) <= 0.51 for centre in centre_of_mass(normalised))
    assert normalised.max() == 255
    reference = decode(encode(picture(seven).convert("RGB")))
    assert similarity(normalised, reference) > 0.9


def test_polarity_is_taken_from_the_border(seven: torch.Tensor) -> None:
    on_black = decode(encode(picture(seven).convert("RGB")))
    on_white = decode(encode(picture(255 - seven).convert("RGB")))
    on_gray = decode(encode(picture(120 - seven // 3).convert("RGB")))
    assert on_black.equal(on_white)
    assert similarity(on_black, on_gray) > 0.99


def test_alpha_is_laid_on_white(seven: torch.Tensor) -> None:
    ink = picture(seven)
    drawn = Image.merge("RGBA", (*[Image.new("L", ink.size)] * 3, ink))
    assert decode(encode(drawn)).equal(decode(encode(picture(255 - seven).convert("RGB"))))


def test_sixteen_bits(seven: torch.Tensor) -> None:
    deep = Image.new("I;16", (56, 56))
    for y, x in seven.nonzero().tolist():
        deep.putpixel((x + 9, y + 20), int(seven[y, x]) * 257)
    expected = decode(encode(picture(seven).convert("RGB")))
    assert similarity(decode(encode(deep)), expected) > 0.99


def test_the_orientation_of_a_photograph(seven: torch.Tensor) -> None:
    upright = dark_on_light(picture(seven).resize((200, 200)), (300, 250), (60, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    lying = encode(upright.rotate(90, expand=True), "JPEG", exif=exif, quality=95)
    assert similarity(decode(lying), decode(encode(upright))) > 0.99


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("size", [(28, 28), (1, 1), (500, 3)])
def test_blank(level: int, size: tuple[int, int]) -> None:
    with pytest.raises(RequestError, match="blank"):
        decode(encode(Image.new("L", size, level)))


def test_paper_grain_alone_is_blank() -> None:
    grain = Image.effect_noise((200, 200), 3)
    with pytest.raises(RequestError, match="blank"):
        decode(encode(grain))


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "BMP", "GIF", "WEBP"])
def test_every_truncation_is_refused_or_read(seven: torch.Tensor, format_: str) -> None:
    data = encode(dark_on_light(picture(seven), (40, 40), (6, 6)), format_)
    assert decode(data).shape == (28, 28)
    for end in range(0, len(data), 7):
        with contextlib.suppress(RequestError):
            assert decode(data[:end]).shape == (28, 28)


def test_every_flipped_byte_is_refused_or_read(seven: torch.Tensor) -> None:
    for format_ in ("PNG", "JPEG", "BMP", "GIF", "WEBP"):
        data = encode(picture(seven), format_)
        for index in range(0, len(data), 3):
            damaged = bytearray(data)
            damaged[index] ^= 0xFF
            with contextlib.suppress(RequestError):
                assert decode(damaged).shape == (28, 28)


def test_the_size_is_checked_before_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("1", (4097, 1)))
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(PayloadTooLargeError, match="4097x1"):
        decode(data)


def test_a_format_that_is_not_listed(seven: torch.Tensor) -> None:
    buffer = io.BytesIO()
    picture(seven).save(buffer, "ICO")
    with pytest.raises(UnsupportedMediaTypeError, match="PNG, JPEG, BMP, GIF, WEBP"):
        decode(buffer.getvalue())
