"""The example of deep networks: what vanishes, what dies, and what does not."""

from dataclasses import replace
from pathlib import Path

import pytest

from training import gradients
from training.data import Data, Split
from training.gradients import DEAD_UNITS, GRADIENTS, dead_share, excerpt, first_to_last, record
from training.history import History
from training.registry import load_recipe


@pytest.fixture(scope="module")
def few(mnist_data: Data) -> Data:
    return excerpt(mnist_data, 2000)


@pytest.fixture(scope="module")
def deep(few: Data) -> dict[str, History]:
    return {name: record(replace(s, epochs=2), few) for name, s in GRADIENTS.items()}


@pytest.fixture(scope="module")
def fast(few: Data) -> dict[str, History]:
    return {name: record(replace(s, epochs=2), few) for name, s in DEAD_UNITS.items()}


def test_gradients_vanish_in_sigmoids_and_nowhere_else(deep: dict[str, History]) -> None:
    sigmoid, normalised, relu = deep.values()
    for epoch in sigmoid.epochs:
        assert first_to_last(epoch) < 0.01
        # Layer by layer; the first has many more inputs than the others.
        norms = list(epoch.gradient_norms.values())
        assert len(norms) == 9
        assert norms[1:] == sorted(norms[1:])
    for history in (normalised, relu):
        for epoch in history.epochs:
            assert first_to_last(epoch) > 0.1
    # Nothing is learned where nothing arrives.
    assert sigmoid.epochs[-1].validation_accuracy < 0.3
    assert normalised.epochs[-1].validation_accuracy > 0.5
    assert relu.epochs[-1].validation_accuracy > 0.5


def test_units_of_relu_die_at_a_high_rate_and_those_of_leaky_relu_do_not(
    fast: dict[str, History],
) -> None:
    usual, high, leaky = (history.epochs[-1] for history in fast.values())
    assert dead_share(usual) < 0.1
    assert dead_share(high) > 0.2
    assert dead_share(leaky) == 0.0


def test_the_page_has_them_side_by_side(deep: dict[str, History], fast: dict[str, History]) -> None:
    html = gradients.page(deep, fast)
    for kind, names in (("Gradient norm", deep), ("Share of dead units", fast)):
        for name in names:
            assert html.count(f'aria-label="{kind} of each layer by epoch, {name}"') == 1


def test_the_command(
    tmp_path: Path,
    mnist_data: Data,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny = Data(*[Split(mnist_data.train.x[:64], mnist_data.train.y[:64])] * 3)
    recipe = replace(load_recipe("mnist"), data=lambda _: tiny)
    monkeypatch.setattr("training.gradients.load_recipe", lambda _: recipe)
    file = tmp_path / "new" / "page.html"
    assert gradients.main(["--out", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    assert "Dead units by layer" in file.read_text()
    (tmp_path / "taken").write_text("")
    assert gradients.main(["--out", str(tmp_path / "taken" / "page.html")]) == 1
    assert "error: " in capsys.readouterr().err
