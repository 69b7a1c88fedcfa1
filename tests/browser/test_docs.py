"""The documentation of the API, which sends real requests."""

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.tabs import Tab, opened
from tests.serving import ROOT, ServerProcess


@pytest.fixture
def docs(browser: Browser, server: ServerProcess) -> Iterator[Tab]:
    """The documentation, as reached from the page."""
    with opened(browser, server.inference) as tab:
        tab.page.get_by_role("link", name="API docs").click()
        expect(tab.page.locator(".opblock").first).to_be_visible(timeout=20_000)
        yield tab


def test_an_image_is_tried_out(docs: Tab) -> None:
    operation = docs.page.locator(".opblock").filter(has_text="/predictions/mnist").first
    operation.locator(".opblock-summary-control").click()
    operation.locator(".content-type").first.select_option("image/png")
    operation.locator("input[type=file]").set_input_files(ROOT / "samples" / "seven.png")
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table .response").first
    expect(answer.locator(".response-col_status")).to_contain_text("200", timeout=20_000)
    body = json.loads(answer.locator(".highlight-code code").inner_text())
    assert body["predictions"][0]["label"] == 7
