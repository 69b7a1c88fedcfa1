import contextlib
import io
import zlib
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw, ImageOps, PngImagePlugin

from handler.errors import PayloadTooLargeError, RequestError, UnsupportedMediaTypeError
from handler.images import Picture, decode_plain
from loadtest.digits import load
from tests.images import dark_on_light, dearest_png, encode, picture, png


def decode(data: bytes | bytearray) -> torch.Tensor:
    pixels = decode_plain(data) or Picture(data).decode()
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


def test_28x28_grayscale_is_unchanged(seven: torch.Tensor) -> None:
    assert decode(png(seven)).equal(seven)
    assert decode(png(255 - seven)).equal(255 - seven)
    assert decode(encode(picture(seven), "BMP")).equal(seven)


def test_a_picture_keeps_its_pixels_when_others_are_decoded(seven: torch.Tensor) -> None:
    plain = png(seven)
    first = decode_plain(plain)
    assert decode(png(255 - seven)).equal(255 - seven)
    begin = plain.index(b"IDAT") + 4
    half = zlib.compress(zlib.decompress(plain[begin:-16])[:400])
    chunk = b"IDAT" + half
    broken = plain[: begin - 8] + len(half).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)
    assert decode_plain(broken + plain[-12:]) is None
    assert first == decode_plain(plain)


def test_one_bit_28x28_is_unchanged(seven: torch.Tensor) -> None:
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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_the_orientation_of_a_photograph(
    seven: torch.Tensor, format_: str, orientation: int
) -> None:
    photograph = dark_on_light(picture(seven).resize((200, 200)), (300, 250), (60, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encode(photograph, format_, exif=exif, quality=95)
    with Image.open(io.BytesIO(stored)) as image:
        upright = ImageOps.exif_transpose(image)
    upright.info.clear()
    assert similarity(decode(stored), decode(encode(upright))) > 0.99


def test_an_orientation_that_cannot_be_read(seven: torch.Tensor) -> None:
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\0\0\0", b"Exif\0\0MM\0*" + bytes(9)):
        data = encode(dark_on_light(picture(seven), (40, 40), (6, 6)), "JPEG", exif=exif)
        with contextlib.suppress(RequestError):
            assert decode(data).shape == (28, 28)


def test_a_28x28_photograph_is_not_taken_for_grayscale(seven: torch.Tensor) -> None:
    photograph = dark_on_light(picture(seven), (28, 28), (0, 0))
    lossy = decode(encode(photograph, "JPEG", quality=95))
    assert similarity(lossy, decode(encode(photograph))) > 0.95


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("size", [(28, 28), (1, 1), (500, 3)])
def test_blank(level: int, size: tuple[int, int]) -> None:
    with pytest.raises(RequestError, match="blank"):
        decode(encode(Image.new("L", size, level)))


def test_paper_grain_alone_is_blank() -> None:
    grain = Image.effect_noise((200, 200), 3)
    with pytest.raises(RequestError, match="blank"):
        decode(encode(grain))


@pytest.mark.parametrize(("side", "speck"), [(4096, 1), (4096, 2), (4096, 6), (1500, 2), (500, 1)])
def test_two_specks_far_apart_are_blank(side: int, speck: int) -> None:
    page = Image.new("L", (side, side), 255)
    for at in (side // 4, side * 3 // 4):
        page.paste(0, (at, at, at + speck, at + speck))
    with pytest.raises(RequestError, match="blank"):
        decode(encode(page))


@pytest.mark.parametrize("side", [1000, 2047, 4096])
def test_a_hairline_is_ink(side: int) -> None:
    page = Image.new("L", (side, side), 255)
    ImageDraw.Draw(page).line([(9, 9), (side - 9, 9), (side // 2, side - 9)], fill=0, width=1)
    assert decode(encode(page)).max() == 255


@pytest.mark.parametrize("digit_side", [28, 300, 3000])
def test_a_digit_of_any_size_on_a_large_page(seven: torch.Tensor, digit_side: int) -> None:
    digit = picture(seven).resize((digit_side, digit_side))
    page = encode(dark_on_light(digit, (4096, 4096), (900, 500)))
    alone = encode(dark_on_light(digit, (digit_side, digit_side), (0, 0)))
    assert similarity(decode(page), decode(alone)) > 0.99


def test_a_digit_in_the_corner_of_a_large_page(seven: torch.Tensor) -> None:
    cropped = picture(seven).crop((7, 4, 22, 23))
    page = encode(dark_on_light(cropped, (4096, 4096), (4096 - cropped.width, 0)))
    alone = encode(dark_on_light(cropped, (40, 40), (9, 9)))
    assert similarity(decode(page), decode(alone)) > 0.99


@pytest.mark.parametrize("invert", [False, True])
def test_digits_cut_out_along_their_ink(invert: bool) -> None:
    alike = 0
    for digit in load()[:100]:
        image = Image.open(io.BytesIO(digit.png))
        ink = image.crop(image.point([255 * (level > 99) for level in range(256)]).getbbox())
        ink = ink.resize((ink.width * 10, ink.height * 10), Image.Resampling.BICUBIC)
        page = ImageOps.expand(ink, 20)
        if invert:
            ink, page = ImageOps.invert(ink), ImageOps.invert(page)
        with contextlib.suppress(RequestError):
            alike += similarity(decode(encode(ink)), decode(encode(page))) > 0.95
    assert alike >= 98  # a 1 that is cut out may be nothing but ink


def test_a_stroke_along_a_whole_side_of_a_picture_is_the_digit_s() -> None:
    seven = Image.new("L", (140, 200))
    draw = ImageDraw.Draw(seven)
    draw.rectangle((0, 0, 140, 30), fill=255)
    draw.line((125, 15, 60, 200), fill=255, width=30)
    page = ImageOps.expand(seven, 40)
    assert similarity(decode(encode(seven)), decode(encode(page))) > 0.99


@pytest.mark.parametrize("width", [1, 2, 20, 300])
@pytest.mark.parametrize(("frame", "paper"), [(0, 255), (60, 255), (255, 0), (200, 30)])
def test_a_frame_is_left_out(seven: torch.Tensor, width: int, frame: int, paper: int) -> None:
    ink = 0 if paper > 128 else 255
    page = ImageOps.colorize(picture(seven).resize((280, 280)), (paper,) * 3, (ink,) * 3)
    framed = ImageOps.expand(page, width, (frame,) * 3)
    assert similarity(decode(encode(framed)), decode(encode(page))) > 0.99


@pytest.mark.parametrize("factor", [0.3, 4, 12])
def test_a_blurred_frame_is_left_out(seven: torch.Tensor, factor: float) -> None:
    page = ImageOps.invert(picture(seven).resize((280, 280)))
    framed = ImageOps.expand(page, 6)
    size = round(framed.width * factor)
    resized = framed.resize((size, size), Image.Resampling.BICUBIC)
    assert similarity(decode(encode(resized)), decode(encode(page))) > 0.95


@pytest.mark.parametrize("width", [1, 100])
def test_an_empty_page_in_a_frame_is_blank(width: int) -> None:
    with pytest.raises(RequestError, match="blank"):
        decode(encode(ImageOps.expand(Image.new("L", (210, 297), 255), width)))


@pytest.mark.parametrize("height", range(1, 16))
def test_dots_of_every_size_are_refused_or_read(height: int) -> None:
    for width in range(1, 16):
        page = Image.new("L", (40, 30), 255)
        page.paste(0, (9, 9, 9 + width, 9 + height))
        with contextlib.suppress(RequestError):
            assert decode(encode(page)).max() == 255


def test_a_bar_upright_or_lying_is_no_page() -> None:
    bar = ImageOps.expand(Image.new("L", (30, 120), 255), 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right makes it upright
    lying = encode(bar.rotate(90, expand=True), exif=exif)
    assert decode(encode(bar)).equal(decode(lying))
    assert int(decode(lying)[14, 14]) == 255


def test_a_rectangular_zero_is_no_page() -> None:
    zero = Image.new("L", (72, 120), 255)
    zero.paste(0, (12, 12, 60, 108))
    seen = decode(encode(ImageOps.expand(zero, 20)))
    assert (seen[4:24].amax(1) == 255).all()
    assert int(seen[14, 14]) == 0


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


def test_a_gif_that_asks_for_memory_in_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would fill the area of a frame whose disposal is to restore the background."""
    data = bytearray(encode(Image.new("P", (40, 40)), "GIF", disposal=2, save_all=True, loop=1))
    frame = data.index(b",\0\0\0\0\x28\0\x28\0")
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    monkeypatch.setattr("PIL.Image.core.fill", lambda *_: pytest.fail("filled"))
    with pytest.raises(PayloadTooLargeError, match="65535x65535"):
        Picture(data)


def test_a_png_without_its_palette(seven: torch.Tensor) -> None:
    data = encode(dark_on_light(picture(seven), (40, 40), (6, 6)).quantize())
    with pytest.raises(RequestError, match="the PNG image cannot be decoded"):
        decode(data.replace(b"PLTE", b"PLTX"))


def test_the_size_is_checked_before_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("1", (4097, 1)))
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(PayloadTooLargeError, match="4097x1"):
        decode(data)


@pytest.mark.parametrize(
    ("data", "bytes_a_pixel"),
    [
        (encode(Image.new("1", (600, 400))), 1),
        (encode(Image.new("L", (600, 400))), 1),
        (encode(Image.new("I;16", (600, 400))), 2),
        (encode(Image.new("RGB", (600, 400))), 3),
        (encode(Image.new("P", (600, 400))), 4),
        (encode(Image.new("LA", (600, 400))), 4),
        (encode(Image.new("RGBA", (600, 400))), 4),
        (dearest_png(490), 8),
        (encode(Image.new("L", (600, 400)), "GIF"), 4),
        (encode(Image.new("L", (600, 400)), "JPEG"), 4),
        (encode(Image.new("L", (600, 400)), "WEBP"), 4),
    ],
)
def test_the_work_is_told_from_the_header(
    monkeypatch: pytest.MonkeyPatch, data: bytes, bytes_a_pixel: int
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    found = Picture(data)
    assert found.pixels in (240_000, 490 * 490)
    assert found.work == found.pixels * bytes_a_pixel


def test_a_file_counts_by_its_bytes_too() -> None:
    data = encode(Image.effect_noise((500, 500), 90), "JPEG", quality=95)
    assert Picture(data).work > 20 * Picture(data).pixels


def test_a_jpeg_with_many_scans() -> None:
    data = encode(Image.new("L", (40, 40)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert decode(encode(Image.linear_gradient("L"), "JPEG", progressive=True)).max() == 255
    with pytest.raises(PayloadTooLargeError, match=r"scans; the limit is 32"):
        Picture(data[:-2] + scan * 30 + data[-2:])


def test_a_run_length_encoded_bmp() -> None:
    data = bytearray(encode(Image.new("P", (40, 40)), "BMP"))
    data[30] = 1  # biCompression: BI_RLE8
    with pytest.raises(UnsupportedMediaTypeError, match="the BMP is run-length encoded"):
        Picture(data)


def test_profiles_and_texts_of_a_png_are_not_read(seven: torch.Tensor) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b" * 10_000, zip=True)
    options: dict[str, Any] = {"pnginfo": text, "icc_profile": bytes(1000)}
    image = dark_on_light(picture(seven), (40, 40), (6, 6)).quantize()
    rich = encode(image, transparency=3, **options)
    assert Picture(rich)._image.info.keys() == {"transparency"}
    assert decode(rich).equal(decode(encode(image, transparency=3)))


def test_comments_of_a_gif_are_not_read(seven: torch.Tensor) -> None:
    image = dark_on_light(picture(seven), (40, 40), (6, 6)).quantize()
    rich = encode(image, "GIF", comment=b"a" * 1000, transparency=3, loop=2, save_all=True)
    info = Picture(rich)._image.info
    assert "comment" not in info
    assert info["transparency"] == 3
    assert decode(rich).equal(decode(encode(image, "GIF", transparency=3)))


def test_a_format_that_is_not_listed(seven: torch.Tensor) -> None:
    buffer = io.BytesIO()
    picture(seven).save(buffer, "ICO")
    with pytest.raises(UnsupportedMediaTypeError, match="PNG, JPEG, BMP, GIF, WEBP"):
        decode(buffer.getvalue())
