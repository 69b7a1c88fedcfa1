"""Debian's Chromium, driven by Playwright."""

import contextlib
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from loadtest.digits import Digit, load
from tests.browser.tabs import Tab, chromium, opened
from tests.deploy.programs import unavailable
from tests.serving import ServerProcess


# While Playwright runs, its event loop does, which `asyncio.run` in another test would object to.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with contextlib.ExitStack() as stack:
        try:
            browser = stack.enter_context(chromium())
        except FileNotFoundError as error:
            unavailable(str(error))
        yield browser


@pytest.fixture
def tab(browser: Browser, server: ServerProcess) -> Iterator[Tab]:
    """The page, 1,180 pixels wide, as the server gives it."""
    with opened(browser, server.inference) as tab:
        yield tab


@pytest.fixture(scope="session")
def digits() -> dict[int, Digit]:
    """An image of MNIST's test set for each label."""
    return {digit.label: digit for digit in reversed(load())}
