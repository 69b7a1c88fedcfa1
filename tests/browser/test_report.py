"""The report of a training in a real browser, offline, as a file."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page
from torch import nn

from training import gradients, report
from training.data import Data, Split
from training.export import ServedModel
from training.history import SURFACE_POINTS, Epoch, History, Surface
from training.mnist import RECIPE as MNIST
from training.xor import RECIPE as XOR

WINDOWS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1180, "height": 820}, "color_scheme": "light"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}
LAYERS = [f"BatchNorm1d {number}" for number in range(1, 10)]


def history(**changes: Any) -> History:
    epochs = tuple(
        Epoch(
            number=number,
            learning_rate=0.1 / number,
            train_loss=1 / number,
            train_accuracy=1 - 0.3 / number,
            validation_loss=0.9 / number,
            validation_accuracy=1 - 0.2 / number,
            gradient_norms={layer: 10.0**-i / number for i, layer in enumerate(LAYERS)},
            dead_units={layer: 0.1 * i for i, layer in enumerate(LAYERS)},
            seconds=1234.5,
        )
        for number in range(1, 31)
    )
    values: dict[str, Any] = {"model": "mnist", "architecture": "mlp", "epochs": epochs, "seed": 0}
    settings = {"hidden": (512,) * 30, "batch_norm": True}
    return History(**(values | {"settings": settings} | changes))


@pytest.fixture(scope="module")
def pages(mnist_data: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of digits and of xor, and the page of gradients."""
    directory = tmp_path_factory.mktemp("reports")
    evaluation = {
        "validation": {"accuracy": 0.9, "log_loss": 0.5},
        "calibration": {"temperature": 0.5},
    }
    torch.manual_seed(0)
    digits = ServedModel(MNIST.normalise, nn.Sequential(nn.Flatten(), nn.Linear(784, 10))).eval()
    digits.temperature = 0.5
    few = Split(mnist_data.validation.x[:200], mnist_data.validation.y[:200])
    data = replace(mnist_data, validation=few)
    ramp = tuple(i / (SURFACE_POINTS - 1) for i in range(SURFACE_POINTS))
    surfaces = tuple(Surface(epoch=n, probabilities=(ramp,) * len(ramp)) for n in (0, 1, 10_001))
    line = ServedModel(XOR.normalise, nn.Linear(2, 2)).eval()
    for name in ("digits", "xor"):
        (directory / name).mkdir()
    deep = dict.fromkeys(gradients.GRADIENTS, history())
    fast = dict.fromkeys(gradients.DEAD_UNITS, history())
    example = directory / "gradients.html"
    example.write_text(gradients.page(deep, fast))
    return {
        "digits": report.write(directory / "digits", history(), digits, data, MNIST, evaluation),
        "xor": report.write(
            directory / "xor", history(surfaces=surfaces), line, XOR.data(Path()), XOR, evaluation
        ),
        "gradients": example,
    }


@dataclass(frozen=True)
class Opened:
    page: Page
    problems: list[str]
    requested: list[str]


@pytest.fixture(params=["digits", "xor", "gradients"])
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(params=WINDOWS)
def opened(
    request: pytest.FixtureRequest, browser: Browser, pages: dict[str, Path], name: str
) -> Iterator[Opened]:
    with browser.new_context(offline=True, **WINDOWS[request.param]) as context:
        opened = Opened(context.new_page(), [], [])
        page = opened.page
        page.on("console", lambda message: opened.problems.append(message.text))
        page.on("pageerror", lambda error: opened.problems.append(str(error)))
        page.on("request", lambda request: opened.requested.append(request.url))
        page.goto(pages[name].as_uri())
        yield opened


def test_a_report_needs_nothing_else(opened: Opened, pages: dict[str, Path], name: str) -> None:
    others = [url for url in opened.requested if not url.startswith("data:")]
    assert others == [pages[name].as_uri()]
    assert opened.problems == []
    broken = "[...document.images].filter(image => !image.naturalWidth).length"
    assert opened.page.evaluate(broken) == 0


def test_everyone_can_read_it(opened: Opened) -> None:
    page = opened.page
    width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] == width[1]
    # Contrast, and a description of every image, among others.
    violations = Axe().run(page).response["violations"]
    assert [(each["id"], node["target"]) for each in violations for node in each["nodes"]] == []


def test_no_label_of_a_chart_is_cut(opened: Opened) -> None:
    cut = opened.page.evaluate(
        """[...document.querySelectorAll("svg")].flatMap(svg => {
            const box = svg.getBoundingClientRect();
            return [...svg.querySelectorAll("text")].filter(text => {
                const {left, right, top, bottom} = text.getBoundingClientRect();
                return left < box.left - 1 || right > box.right + 1
                    || top < box.top - 1 || bottom > box.bottom + 1;
            }).map(text => `${svg.getAttribute("aria-label")}: ${text.textContent}`);
        })"""
    )
    assert cut == []


def test_every_chart_has_lines_or_bars(opened: Opened) -> None:
    empty = opened.page.evaluate(
        """[...document.querySelectorAll("svg")].filter(svg =>
            ![...svg.querySelectorAll("path")].some(path => {
                const box = path.getBoundingClientRect();
                return path.style.stroke.startsWith("rgb") && box.width > 50
                    || path.style.fill.startsWith("rgb") && box.height > 20;
            })).map(svg => svg.getAttribute("aria-label"))"""
    )
    assert empty == []
    assert opened.page.locator("svg").count() >= 5
