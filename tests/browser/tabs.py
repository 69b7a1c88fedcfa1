"""A tab with the page, and what a user does in it."""

import contextlib
from collections.abc import Iterator
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Request, Response, expect

# Of a pad, from the left and from the top: the strokes of a seven.
SEVEN = [(0.27, 0.2), (0.5, 0.19), (0.74, 0.2), (0.66, 0.4), (0.56, 0.6), (0.47, 0.84)]


class Tab:
    """The page of one server.

    Args:
        page: a blank page.
        url: the server's.

    Attributes:
        problems: what the browser's console said, and errors in scripts.
        requests: all that were sent, to whatever host.
        responses: those of the server.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.problems: list[str] = []
        self.requests: list[Request] = []
        self.responses: list[Response] = []
        page.on("console", lambda message: self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        # Playwright sets an attribute on what is called, which a built-in method does not take.
        page.on("request", lambda request: self.requests.append(request))  # noqa: PLW0108
        page.on("response", lambda response: self.responses.append(response))  # noqa: PLW0108

    def open(self, model: str = "") -> None:
        """Go to the page, or to a model on it."""
        self.page.goto(f"{self.url}/#{model}" if model else self.url)

    @property
    def pad(self) -> Locator:
        return self.page.locator(".pad canvas")

    @property
    def point(self) -> Locator:
        return self.page.get_by_role("slider")

    @property
    def notice(self) -> Locator:
        return self.page.locator("#trouble")

    def draw_seven(self) -> None:
        """Draw with the mouse."""
        places = self.on_pad(SEVEN)
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=8)
        self.page.mouse.up()

    def on_pad(self, shares: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """Shares of the pad's width and height as places in the window."""
        self.pad.wait_for()
        self.pad.scroll_into_view_if_needed()
        box = self.pad.bounding_box()
        assert box
        return [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in shares]

    def expect_label(self, label: int) -> None:
        """Wait until this is the answer."""
        expect(self.page.locator(".result")).to_have_text(str(label), timeout=20_000)

    def expect_refusal(self, text: str) -> None:
        """Wait until the page says this instead of an answer."""
        expect(self.page.locator(".refused .verdict")).to_contain_text(text, timeout=20_000)

    def expect_explanation(self) -> None:
        """Wait until the last answer has been explained."""
        explanation = self.page.locator(".explanation:not(.stale)")
        expect(explanation).to_be_visible(timeout=20_000)

    def fact(self, name: str) -> str:
        """What the page says of an answer: its version, or the time that it took."""
        text: str = self.page.locator(f".facts .{name}").inner_text()
        return text

    def evaluate(self, function: str, argument: Any = None) -> Any:
        return self.page.evaluate(function, argument)

    def violations(self) -> list[str]:
        """What axe-core finds that keeps people out: each rule, and where."""
        results = Axe().run(self.page)
        return [
            f"{violation['id']}: {node['target']} {node['failureSummary']}"
            for violation in results.response["violations"]
            for node in violation["nodes"]
        ]


@contextlib.contextmanager
def opened(browser: Browser, url: str, *, tolerant: bool = False, **options: Any) -> Iterator[Tab]:
    """A tab with the page, in a browser profile of its own.

    Args:
        tolerant: whether the console may speak, as it does of every request that fails.
        options: of the profile, such as the size of its windows.
    """
    options = {"viewport": {"width": 1180, "height": 820}} | options
    with browser.new_context(**options) as context:
        tab = Tab(context.new_page(), url)
        tab.open()
        yield tab
        elsewhere = [each.url for each in tab.requests if not _is_local(each.url, url)]
        assert not elsewhere, elsewhere
        assert tolerant or not tab.problems, tab.problems


def _is_local(asked: str, url: str) -> bool:
    return asked.startswith((f"{url}/", "data:", f"blob:{url}/"))
