"""Debian's Chromium, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from loadtest.digits import Digit, load
from tests.browser.tabs import Tab, opened
from tests.deploy.programs import unavailable
from tests.serving import ServerProcess

# No graphics card, no sandbox within a container, and nothing that asks hosts of its own accord.
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


# While Playwright runs, its event loop does, which `asyncio.run` in another test would object to.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    program = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    if program is None:
        unavailable("Chromium is not installed: `make deploy-tools` does it, or CHROMIUM names one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Browser, server: ServerProcess) -> Iterator[Tab]:
    """The page, 1,180 pixels wide, as the server gives it."""
    with opened(browser, server.inference) as tab:
        yield tab


@pytest.fixture(scope="session")
def digits() -> dict[int, Digit]:
    """An image of MNIST's test set for each label."""
    return {digit.label: digit for digit in reversed(load())}
