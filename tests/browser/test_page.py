"""The page in a real browser, in front of the real service."""

import base64
import hashlib
import io
import json
import re
import zipfile
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from PIL import Image
from playwright.sync_api import Browser, Request, expect
from torch import nn

from handler.card import CARD_FILE, TORCHSCRIPT_FILE
from loadtest.digits import Digit
from loadtest.servers import wait_until
from tests.archives import altered
from tests.browser.tabs import SEVEN, Tab, opened
from tests.images import dark_on_light, encode
from tests.serving import ServerProcess, serving

NARROW = {"width": 360, "height": 780}
WIDE = {"width": 1180, "height": 820}


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory: pytest.TempPathFactory, digits: dict[int, Digit]) -> Path:
    """Four, written in blue in a corner of a sheet of paper."""
    four = Image.open(io.BytesIO(digits[4].png)).resize((112, 112))
    file = tmp_path_factory.mktemp("pictures") / "four.jpg"
    file.write_bytes(encode(dark_on_light(four, (300, 200), (150, 60)), "JPEG"))
    return file


@pytest.fixture(scope="module")
def sums_store(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of this project that says whether ten numbers have a positive sum."""

    class Sums(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total = x.float().sum(dim=1, keepdim=True)
            return torch.cat([-total, total], dim=1).softmax(dim=1)

    script = io.BytesIO()
    torch.jit.save(torch.jit.freeze(torch.jit.script(Sums().eval())), script)
    archive = store / "xor.mar"
    with zipfile.ZipFile(archive) as content:
        card = json.loads(content.read(CARD_FILE))
    card |= {
        "input_shape": [10],
        "torchscript_sha256": hashlib.sha256(script.getvalue()).hexdigest(),
        "example": {"instances": [[1] * 10]},
        "example_label": 1,
    }
    changes = {CARD_FILE: json.dumps(card).encode(), TORCHSCRIPT_FILE: script.getvalue()}
    directory = tmp_path_factory.mktemp("store")
    altered(archive, directory / "xor.mar", changes)
    return directory


def predictions(tab: Tab) -> list[Request]:
    return [each for each in tab.requests if "/predictions/" in each.url]


class TestPad:
    def test_a_seven_that_is_drawn_is_read(self, tab: Tab) -> None:
        tab.draw_seven()
        tab.expect_label(7)
        expect(tab.page.get_by_role("status")).to_have_text(
            re.compile(r"mnist answers 7, probability (9\d\.\d|100\.0) %")
        )
        # The bars are a table, with the answer's the longest.
        rows = tab.page.get_by_role("row").filter(has=tab.page.get_by_role("rowheader"))
        expect(rows).to_have_count(10)
        shares = [float(row.inner_text().split()[1]) for row in rows.all()]
        assert shares.index(max(shares)) == 7
        assert sum(shares) == pytest.approx(100, abs=0.5)
        widths = [row.locator("i").evaluate("bar => bar.offsetWidth") for row in rows.all()]
        assert widths.index(max(widths)) == 7
        expect(tab.page.get_by_role("status")).to_contain_text(f"{max(shares)} %")
        assert tab.fact("model") == "mnist"
        assert tab.fact("version") == "1.0"
        assert tab.fact("time").endswith(" ms")

    def test_the_answer_is_explained_over_what_the_model_saw(self, tab: Tab) -> None:
        # A sample is asked about once; a drawing also while the pointer pauses.
        tab.page.get_by_role("button", name="7", exact=True).click()
        tab.expect_label(7)
        tab.expect_explanation()
        (response,) = (each for each in tab.responses if "/explanations/" in each.url)
        sent = response.request.post_data_buffer
        assert sent
        answer = requests.post(response.url, data=sent, timeout=60).json()
        (explanation,) = answer["explanations"]
        seen, spoke = (pixels_of(tab, f"figure:nth-of-type({number}) canvas") for number in (1, 2))
        assert [row[::4] for row in seen] == [
            [round(v) for v in row] for row in explanation["input"]
        ]
        # Orange where it spoke for the answer, blue where against.
        for y, row in enumerate(explanation["attributions"]):
            for x, value in enumerate(row):
                red, _, blue = spoke[y][4 * x : 4 * x + 3]
                if abs(value) > 0.2 * max(abs(v) for r in explanation["attributions"] for v in r):
                    assert (red > blue) == (value > 0), (y, x, value)
        expect(tab.page.get_by_role("img", name="of the picture spoke most for 7")).to_be_visible()

    def test_clear_and_undo(self, tab: Tab) -> None:
        tab.draw_seven()
        tab.expect_label(7)
        [(x, y)] = tab.on_pad([(0.1, 0.9)])
        tab.page.mouse.click(x, y)
        expect(tab.pad).to_have_accessible_name("Pad with 2 strokes")
        tab.page.get_by_role("button", name="Undo").click()
        expect(tab.pad).to_have_accessible_name("Pad with 1 stroke")
        tab.expect_label(7)
        tab.page.get_by_role("button", name="Clear").click()
        expect(tab.page.get_by_text("No answer yet")).to_be_visible()
        expect(tab.page.locator(".explanation")).to_be_hidden()
        # An answer that was under way when the pad was cleared is not shown.
        tab.page.get_by_role("button", name="3", exact=True).click()
        tab.page.get_by_role("button", name="Clear").click()
        asked = len(predictions(tab))
        tab.page.get_by_role("button", name="5", exact=True).click()
        tab.expect_label(5)
        assert len(predictions(tab)) <= asked + 2

    def test_keys_in_the_middle_of_a_stroke(self, tab: Tab) -> None:
        places = tab.on_pad(SEVEN)
        for key, name in (("Delete", "0 strokes"), ("Control+z", "0 strokes"), ("5", "1 stroke")):
            tab.page.mouse.move(*places[0])
            tab.page.mouse.down()
            tab.page.mouse.move(*places[2], steps=4)
            tab.pad.press(key)
            tab.page.mouse.move(*places[5], steps=4)
            tab.page.mouse.up()
            expect(tab.pad).to_have_accessible_name(f"Pad with {name}")
        tab.expect_label(5)

    def test_every_sample_is_read_as_what_it_is(self, tab: Tab) -> None:
        for digit in range(10):
            tab.page.get_by_role("button", name=str(digit), exact=True).click()
            tab.expect_label(digit)

    def test_one_request_at_a_time_and_the_last_drawing_wins(self, tab: Tab) -> None:
        tab.draw(SEVEN, steps=40)
        tab.expect_label(7)
        tab.expect_explanation()
        spans = tab.evaluate(
            """() => performance.getEntriesByType("resource")
                .filter(({ initiatorType }) => initiatorType === "fetch")
                .map(({ startTime, responseEnd }) => [startTime, responseEnd])"""
        )
        assert len(spans) > 4
        assert all(end <= start for (_, end), (start, _) in pairwise(sorted(spans)))
        # 200 places of the pointer are not 200 requests.
        assert 1 <= len(predictions(tab)) < 100

    def test_a_finger_draws_and_does_not_scroll(
        self, browser: Browser, server: ServerProcess
    ) -> None:
        with opened(browser, server.inference, viewport=NARROW, has_touch=True) as tab:
            session = tab.page.context.new_cdp_session(tab.page)

            def touch(kind: str, *places: tuple[float, float]) -> None:
                points = [{"x": x, "y": y} for x, y in places]
                session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

            first, *others = tab.on_pad(SEVEN)
            before = tab.evaluate("() => scrollY")
            touch("touchStart", first)
            last = first
            for place in others:
                for step in range(1, 9):
                    x, y = ((a + (b - a) * step / 8) for a, b in zip(last, place, strict=True))
                    touch("touchMove", (x, y))
                last = place
            touch("touchEnd")
            tab.expect_label(7)
            assert tab.evaluate("() => scrollY") == before


class TestPictures:
    def test_dropped(self, tab: Tab, jpeg: Path) -> None:
        [(x, y)] = tab.on_pad([(0.5, 0.5)])
        session = tab.page.context.new_cdp_session(tab.page)
        data = {"items": [], "files": [str(jpeg)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            session.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})
        tab.expect_label(4)
        expect(tab.pad).to_have_accessible_name("Pad with a picture")
        # The file itself, not what the browser makes of it.
        assert predictions(tab)[-1].post_data_buffer == jpeg.read_bytes()

    def test_pasted(self, tab: Tab, digits: dict[int, Digit]) -> None:
        tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        tab.pad.wait_for()
        tab.evaluate(
            """async (data) => {
                const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt());
                const png = new Blob([bytes], { type: "image/png" });
                await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
            }""",
            base64.b64encode(digits[2].png).decode(),
        )
        tab.page.keyboard.press("Control+V")
        tab.expect_label(2)

    def test_chosen(self, tab: Tab, jpeg: Path) -> None:
        with tab.page.expect_file_chooser() as chooser:
            tab.page.get_by_role("button", name="Choose picture").click()
        chooser.value.set_files(jpeg)
        tab.expect_label(4)

    def test_one_of_a_camera_is_made_small_enough(
        self, browser: Browser, server: ServerProcess, digits: dict[int, Digit], tmp_path: Path
    ) -> None:
        """12 million pixels in 4 MB, turned by 90 degrees, as phones make them."""
        photo = dark_on_light(
            Image.open(io.BytesIO(digits[4].png)).resize((2000, 2000)), (4200, 3000), (1000, 500)
        ).rotate(90, expand=True)
        noise = Image.effect_noise(photo.size, 12).convert("RGB")
        photo = Image.blend(photo, noise, 0.1)
        exif = Image.Exif()
        exif[0x0112] = 6
        file = tmp_path / "photo.jpg"
        file.write_bytes(encode(photo, "JPEG", quality=97, exif=exif.tobytes()))
        assert file.stat().st_size > 1 << 20
        with opened(browser, server.inference, has_touch=True, is_mobile=True) as tab:
            with tab.page.expect_file_chooser() as chooser:
                tab.page.get_by_role("button", name="Take photo").click()
            chooser.value.set_files(file)
            tab.expect_label(4)
            sent = predictions(tab)[-1].post_data_buffer
            assert sent
            assert max(Image.open(io.BytesIO(sent)).size) == 1024

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("text.png", b"hello", "not a supported image"),
            ("large.heic", bytes(1 << 21), "not a picture that this browser can read"),
            ("blank.png", encode(Image.new("L", (90, 90), "white")), "the image is blank"),
        ],
    )
    def test_what_is_no_digit_gets_a_reason(
        self, browser: Browser, server: ServerProcess, name: str, content: bytes, message: str
    ) -> None:
        with opened(browser, server.inference, tolerant=True) as tab:
            file: Any = {"name": name, "mimeType": "image/png", "buffer": content}
            tab.page.locator(".files").set_input_files(file)
            tab.expect_refusal(message)
            expect(tab.page.get_by_role("status")).to_contain_text(message)
            tab.draw_seven()
            tab.expect_label(7)


class TestPlane:
    def test_the_surface_is_one_batch(self, tab: Tab) -> None:
        tab.open("xor")
        expect(tab.page.get_by_text("answer 1")).to_be_visible()
        tab.expect_label(1)
        for _ in range(20):
            tab.point.press("ArrowRight")
        tab.expect_label(0)
        tab.expect_explanation()
        sizes = [len(json.loads(each.post_data or "")["instances"]) for each in predictions(tab)]
        assert sizes.count(1024) == 1
        assert set(sizes) == {1, 1024}
        # The corners of the unit square are blue where the answer is 0, orange where it is 1.
        pixels = pixels_of(tab, ".plane canvas")
        for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
            x, y = 64 + 128 * a, 191 - 128 * b
            red, _, blue = pixels[y][4 * x : 4 * x + 3]
            assert (red > blue) == (a != b), (a, b)

    def test_dragged_over_the_border(self, tab: Tab) -> None:
        tab.open("xor")
        tab.expect_label(1)
        tab.expect_explanation()
        box = tab.page.locator(".plane").bounding_box()
        point = tab.point.bounding_box()
        assert box
        assert point
        tab.page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
        tab.page.mouse.down()
        tab.page.mouse.move(
            box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"], steps=9
        )
        tab.page.mouse.up()
        tab.expect_label(0)
        for name in ("First", "Second"):
            field = tab.page.get_by_label(name)
            assert float(field.input_value()) == pytest.approx(1, abs=0.02)
        assert tab.fact("model") == "xor"
        # Two numbers are explained by two bars.
        tab.expect_explanation()
        expect(tab.page.locator(".attributions").get_by_role("rowheader")).to_have_text(
            ["first", "second"]
        )

    def test_numbers_are_typed(self, tab: Tab) -> None:
        tab.open("xor")
        tab.page.get_by_label("First").fill("1")
        tab.expect_label(0)
        tab.page.get_by_label("Second").fill("0.1")
        tab.expect_label(1)
        expect(tab.point).to_have_attribute("aria-valuetext", "first 1, second 0.1")


class TestKeyboard:
    def test_alone_is_enough(self, tab: Tab) -> None:
        keyboard = tab.page.keyboard
        tab.pad.wait_for()
        names = []
        while not tab.pad.evaluate("pad => pad === document.activeElement"):
            keyboard.press("Tab")
            names.append(tab.evaluate("() => document.activeElement.textContent.trim()"))
            assert len(names) < 10
        assert names[:2] == ["mnist", "xor"]
        assert (
            tab.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
        )
        keyboard.press("3")
        tab.expect_label(3)
        keyboard.press("8")
        tab.expect_label(8)
        keyboard.press("Control+z")
        expect(tab.page.get_by_text("No answer yet")).to_be_visible()
        keyboard.press("6")
        tab.expect_label(6)
        keyboard.press("Delete")
        expect(tab.page.get_by_text("No answer yet")).to_be_visible()
        for _ in range(2):
            tab.pad.press("Shift+Tab")
            if tab.evaluate("() => document.activeElement.textContent") == "xor":
                break
            keyboard.press("Shift+Tab")
        assert tab.evaluate("() => document.activeElement.textContent") == "xor"
        keyboard.press("Enter")
        tab.expect_label(1)
        assert tab.page.title().startswith("xor")
        while tab.evaluate("() => document.activeElement.role") != "slider":
            keyboard.press("Tab")
        for _ in range(20):
            keyboard.press("ArrowRight")
        tab.expect_label(0)
        expect(tab.point).to_have_attribute("aria-valuetext", "first 1, second 1")
        keyboard.press("Shift+ArrowDown")
        expect(tab.point).to_have_attribute("aria-valuetext", "first 1, second 0.99")

    def test_keys_elsewhere_draw_nothing(self, tab: Tab) -> None:
        tab.pad.wait_for()
        tab.page.keyboard.press("3")
        expect(tab.pad).to_have_accessible_name("Pad with 0 strokes")


class TestLooks:
    @pytest.mark.parametrize("model", ["mnist", "xor"])
    @pytest.mark.parametrize("width", [320, 360, 820, 1600])
    def test_nothing_is_cut_off(
        self, browser: Browser, server: ServerProcess, width: int, model: str
    ) -> None:
        viewport = {"width": width, "height": 780}
        with opened(browser, server.inference, viewport=viewport) as tab:
            tab.open(model)
            surface = tab.page.locator(".surface")
            surface.wait_for()
            tab.page.get_by_text("Request and answer").click()
            assert tab.evaluate("() => document.documentElement.scrollWidth") <= width
            left, right = (
                tab.page.locator(f".{side}").bounding_box() for side in ("input", "answer")
            )
            assert left
            assert right
            is_wide = width > 736
            assert (left["x"] + left["width"] <= right["x"]) == is_wide
            # The answer is in sight while somebody draws.
            verdict = tab.page.locator(".verdict").bounding_box()
            assert verdict
            assert verdict["y"] + verdict["height"] < 780
            box = surface.bounding_box()
            assert box
            assert box["width"] == pytest.approx(box["height"], abs=1)
            assert box["width"] > 0.75 * min(width, 416)

    def test_dark(self, browser: Browser, server: ServerProcess) -> None:
        with opened(browser, server.inference, color_scheme="dark") as tab:
            background = "element => getComputedStyle(element).backgroundColor"
            for selector in ("body", ".pad"):
                levels = tab.page.locator(selector).evaluate(background)
                assert sum(map(int, levels.strip("rgb()").split(","))) < 120
            tab.draw_seven()
            tab.expect_label(7)
            # What is sent is black on white whatever the page looks like.
            sent = predictions(tab)[-1].post_data_buffer
            assert sent
            assert Image.open(io.BytesIO(sent)).convert("L").getpixel((0, 0)) == 255

    def test_reduced_motion(self, browser: Browser, server: ServerProcess) -> None:
        for wish, seconds in (("no-preference", "0.12s"), ("reduce", "0s")):
            with opened(browser, server.inference, reduced_motion=wish) as tab:
                bar = tab.page.locator(".bars i").first
                assert bar.evaluate("i => getComputedStyle(i).transitionDuration") == seconds

    @pytest.mark.parametrize("viewport", [NARROW, WIDE], ids=["narrow", "wide"])
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_nothing(
        self, browser: Browser, server: ServerProcess, scheme: str, viewport: dict[str, int]
    ) -> None:
        with opened(
            browser,
            server.inference,
            color_scheme=scheme,
            viewport=viewport,
            reduced_motion="reduce",
            tolerant=True,
        ) as tab:
            tab.pad.wait_for()
            assert tab.violations() == []
            tab.draw_seven()
            tab.expect_explanation()
            tab.page.get_by_text("Request and answer").click()
            assert tab.violations() == []
            empty: Any = {"name": "a.png", "mimeType": "image/png", "buffer": b"hello"}
            tab.page.locator(".files").set_input_files(empty)
            tab.expect_refusal("not a supported image")
            assert tab.violations() == []
            tab.open("xor")
            tab.expect_explanation()
            assert tab.violations() == []


def test_the_whole_page_is_small(tab: Tab) -> None:
    tab.pad.wait_for()
    assert sum(len(each.body()) for each in tab.responses) < 100_000


def test_request_and_answer_are_shown(tab: Tab) -> None:
    tab.open("xor")
    tab.expect_label(1)
    tab.page.get_by_text("Request and answer").click()
    request, answer = (tab.page.locator(f"pre.{name}") for name in ("request", "body"))
    expect(request).to_contain_text(f"{tab.url}/predictions/xor")
    expect(request).to_contain_text('{"instances":[[0,1]]}')
    last = predictions(tab)[0].response()
    assert last
    assert last.headers["x-request-id"] in request.inner_text()
    assert json.loads(answer.inner_text())["predictions"][0]["label"] == 1


def test_a_model_of_another_shape_takes_json(browser: Browser, sums_store: Path) -> None:
    with serving(sums_store) as server, opened(browser, server.inference, tolerant=True) as tab:
        field = tab.page.get_by_label("One instance, as JSON")
        expect(field).to_have_value("[0,0,0,0,0,0,0,0,0,0]")
        field.fill("[1,1,1,1,1,1,1,1,1,1]")
        tab.expect_label(1)
        field.fill("[1,1]")
        tab.expect_refusal("instances[0]: expected 10 numbers, got 2")
        field.fill("[1,")
        tab.expect_refusal("This is not JSON")
        field.fill("[-1,-1,-1,-1,-1,-1,-1,-1,-1,-1]")
        tab.expect_label(0)
        assert tab.violations() == []


class TestTrouble:
    def test_a_server_that_goes_and_comes_back(self, browser: Browser, store: Path) -> None:
        with ExitStack() as stack:
            server = stack.enter_context(serving(store))
            tab = stack.enter_context(opened(browser, server.inference, tolerant=True))
            tab.draw_seven()
            tab.expect_label(7)
            assert tab.problems == []
            server._stop()
            tab.page.get_by_role("button", name="3", exact=True).click()
            expect(tab.notice).to_contain_text("The service cannot be reached")
            assert tab.violations() == []
            tab.page.get_by_role("button", name="5", exact=True).click()
            server.start()
            wait_until(lambda: is_reachable(server))
            # The door is open before the models are.
            early = stack.enter_context(opened(browser, server.inference, tolerant=True))
            early.page.get_by_role("button", name="2", exact=True).click()
            expect(early.notice).to_contain_text("the models are loading")
            for each, digit in ((tab, 5), (early, 2)):
                each.page.locator(f".result:text-is('{digit}')").wait_for(timeout=90_000)
                expect(each.notice).to_be_empty()

    def test_too_many_requests(self, browser: Browser, store: Path) -> None:
        with (
            serving(store, RATE_LIMIT="1") as server,
            opened(browser, server.inference, tolerant=True) as tab,
        ):
            tab.draw_seven()
            expect(tab.notice).to_contain_text("over 1 requests a second")
            tab.expect_label(7)
            expect(tab.notice).to_be_empty(timeout=20_000)

    def test_a_token_is_asked_for(self, browser: Browser, store: Path, tmp_path: Path) -> None:
        file = tmp_path / "tokens"
        file.write_text(hashlib.sha256(b"secret").hexdigest() + " page\n")
        with (
            serving(store, TOKEN_FILE=str(file)) as server,
            opened(browser, server.inference, tolerant=True) as tab,
        ):
            field = tab.page.get_by_label("Bearer token")
            expect(tab.notice).to_contain_text("wants a bearer token")
            assert tab.violations() == []
            field.fill("wrong")
            field.press("Enter")
            expect(tab.notice).to_contain_text("does not know this token")
            expect(field).to_have_value("")
            field.fill("secret")
            tab.page.get_by_role("button", name="Use token").click()
            tab.draw_seven()
            tab.expect_label(7)
            expect(tab.notice).to_be_empty()
            expect(field).to_be_hidden()
            # In memory only.
            kept = tab.evaluate(
                "() => [document.cookie, ...[localStorage, sessionStorage].map(JSON.stringify)]"
            )
            assert kept == ["", "{}", "{}"]
            tab.page.reload()
            expect(tab.notice).to_contain_text("wants a bearer token")


def is_reachable(server: ServerProcess) -> bool:
    try:
        answer = requests.get(server.inference, headers={"Accept": "text/html"}, timeout=5)
    except requests.ConnectionError:
        return False
    return answer.status_code == 200


def pixels_of(tab: Tab, canvas: str) -> list[list[int]]:
    """Rows of a canvas: red, green, blue and alpha of each pixel, one after another."""
    rows: list[list[int]] = tab.page.locator(canvas).evaluate(
        """canvas => {
            const { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            return Array.from({ length: height }, (_, y) =>
              [...data.slice(4 * width * y, 4 * width * (y + 1))]);
        }"""
    )
    return rows
