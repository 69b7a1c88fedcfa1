"""README's pictures of the page: `python -m tests.browser.screenshots http://127.0.0.1:8080`."""

import sys
from pathlib import Path

from playwright.sync_api import FloatRect, expect

from tests.browser.tabs import chromium, opened
from tests.serving import ROOT

# Of the pad, from the left and from the top: between a four and a nine.
STROKES = [
    [
        (0.47, 0.21),
        (0.4, 0.24),
        (0.34, 0.32),
        (0.3, 0.42),
        (0.34, 0.51),
        (0.44, 0.53),
        (0.65, 0.48),
    ],
    [(0.6, 0.2), (0.6, 0.4), (0.59, 0.6), (0.57, 0.82)],
]


def take(url: str, directory: Path) -> None:
    """Picture a drawing and a plane, both explained."""
    directory.mkdir(exist_ok=True)
    with chromium() as browser, opened(browser, url) as tab:
        for stroke in STROKES:
            tab.draw(stroke)
        tab.expect_explanation()
        clip = FloatRect(x=60, y=0, width=1060, height=735)
        tab.page.screenshot(path=directory / "page-drawing.png", clip=clip)
        tab.open("xor")
        expect(tab.page.get_by_text("answer 1")).to_be_visible()
        tab.page.get_by_label("First").fill("0.7")
        tab.page.get_by_label("Second").fill("0.2")
        tab.expect_explanation()
        tab.page.get_by_text("Model server").click()
        clip["height"] = 620
        tab.page.screenshot(path=directory / "page-plane.png", clip=clip)


if __name__ == "__main__":
    take(sys.argv[1], ROOT / "docs")
