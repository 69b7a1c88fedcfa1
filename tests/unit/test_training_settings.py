"""Settings of training: what they may be, where they come from, and what they do."""

import re
import tomllib
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.blobs import run
from tests.serving import ROOT
from training.__main__ import main
from training.layers import fully_connected
from training.losses import loss
from training.registry import load_recipe
from training.runs import to_toml
from training.settings import KINDS, SettingError, Settings, checked, meanings, parsed
from training.xor import network as xor_network

EXAMPLE = ROOT / "training" / "example.toml"
DOCUMENT = ROOT / "training" / "README.md"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINING_CACHE", str(tmp_path / "cache"))


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("activation", "rleu", "one of sigmoid, tanh, relu, leaky_relu, got 'rleu'"),
            ("loss", "hinge", "one of cross_entropy, bce, mse, got 'hinge'"),
            ("optimizer", ["sgd"], "one of sgd, adam, adamw, nadam, got ('sgd',)"),
            ("epochs", 0, "a whole number of 1 or more, got 0"),
            ("epochs", 2.0, "a whole number of 1 or more, got 2.0"),
            ("epochs", True, "a whole number of 1 or more, got True"),
            ("seed", 1 << 63, "a whole number of 0 or more"),
            ("batch_norm", 1, "true or false, got 1"),
            ("dropout", 1.0, "a number from 0 to under 1, got 1.0"),
            ("dropout", "0.5", "a number from 0 to under 1, got '0.5'"),
            ("learning_rate", 0.0, "a number over 0, got 0.0"),
            ("learning_rate", float("inf"), "a number over 0, got inf"),
            ("weight_decay", float("nan"), "a number of 0 or more, got nan"),
            ("hidden", [], "a list of whole numbers of 1 or more, got ()"),
            ("hidden", [8, 0], "a list of whole numbers of 1 or more, got (8, 0)"),
            ("hidden", 8, "a list of whole numbers of 1 or more, got 8"),
        ],
    )
    def test_a_wrong_value_is_told_what_is_right(
        self, name: str, value: Any, expected: str
    ) -> None:
        with pytest.raises(SettingError, match=re.escape(f"{name}: expected {expected}")):
            Settings(**{name: value})

    def test_settings_that_do_not_fit(self) -> None:
        with pytest.raises(SettingError, match="momentum: optimizer adamw has none"):
            Settings(momentum=0.9)
        with pytest.raises(SettingError, match="nesterov: it needs a momentum over 0"):
            Settings(optimizer="sgd", nesterov=True)

    def test_values_get_the_type_of_their_setting(self) -> None:
        values: dict[str, Any] = {"hidden": [3, 2], "weight_decay": 0}
        settings = Settings(**values)
        assert settings.hidden == (3, 2)
        assert type(settings.weight_decay) is float

    @pytest.mark.parametrize(
        ("name", "text", "value"),
        [
            ("hidden", "100,50", (100, 50)),
            ("learning_rate", "1e-3", 0.001),
            ("epochs", "3", 3),
            ("activation", "tanh", "tanh"),
        ],
    )
    def test_texts_of_the_command_line(self, name: str, text: str, value: Any) -> None:
        assert parsed(name, text) == value
        with pytest.raises(SettingError, match=f"{name}: expected .*, got '{text}x'"):
            parsed(name, f"{text}x")

    def test_every_setting_has_a_meaning_and_a_default_that_it_accepts(self) -> None:
        names = [field.name for field in fields(Settings)]
        assert list(meanings()) == names
        for name, value in asdict(Settings()).items():
            assert checked(name, value) == value


class TestLayers:
    def test_what_is_between_the_linear_layers(self) -> None:
        rich = Settings(hidden=(30, 20), dropout=0.5, batch_norm=True, activation="tanh")
        layers = list(fully_connected(7, 3, rich))
        kinds = [type(layer).__name__ for layer in layers]
        assert kinds == 2 * ["Linear", "BatchNorm1d", "Tanh", "Dropout"] + ["Linear"]
        widths = [layer.weight.shape for layer in layers if isinstance(layer, nn.Linear)]
        assert widths == [(30, 7), (20, 30), (3, 20)]

    @pytest.mark.parametrize(
        ("activation", "expected"),
        [
            ("sigmoid", [0.2689414, 0.8807971]),
            ("tanh", [-0.7615942, 0.9640276]),
            ("relu", [0.0, 2.0]),
            ("leaky_relu", [-0.01, 2.0]),
        ],
    )
    def test_activations(self, activation: str, expected: list[float]) -> None:
        layer = list(fully_connected(2, 2, Settings(hidden=(2,), activation=activation)))[1]
        assert layer(torch.tensor([-1.0, 2.0])).tolist() == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("initialisation", "deviation", "bias"),
        [
            ("torch", (1 / 1200) ** 0.5, (1 / 1200) ** 0.5),
            ("normal", 1.0, 1.0),
            ("xavier", (2 / 600) ** 0.5, 0.0),
            ("kaiming", (2 / 400) ** 0.5, 0.0),
        ],
    )
    def test_initialisations(self, initialisation: str, deviation: float, bias: float) -> None:
        torch.manual_seed(0)
        settings = Settings(hidden=(200,), initialisation=initialisation)
        layer = next(iter(fully_connected(400, 10, settings)))
        assert isinstance(layer, nn.Linear)
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.02)
        assert layer.bias.std().item() == pytest.approx(bias, rel=0.2)


class TestLosses:
    LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    LABELS = torch.tensor([0, 1])

    @pytest.mark.parametrize("smoothing", [0.0, 0.3])
    @pytest.mark.parametrize("name", ["cross_entropy", "bce", "mse"])
    def test_by_hand(self, name: str, smoothing: float) -> None:
        p = self.LOGITS.softmax(dim=1).tolist()
        terms = []
        for row, label in zip(p, self.LABELS.tolist(), strict=True):
            target = [smoothing / 3 + (1 - smoothing) * (label == k) for k in range(3)]
            pairs = [(torch.tensor(q), t) for q, t in zip(row, target, strict=True)]
            terms.append(
                {
                    "cross_entropy": sum(-t * q.log() for q, t in pairs),
                    "bce": sum(-t * q.log() - (1 - t) * (1 - q).log() for q, t in pairs) / 3,
                    "mse": sum((q - t) ** 2 for q, t in pairs) / 3,
                }[name]
            )
        settings = Settings(loss=name, label_smoothing=smoothing)
        expected = float(sum(terms)) / 2
        assert loss(settings, self.LOGITS, self.LABELS).item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("name", ["bce", "mse"])
    def test_of_xor_are_those_of_its_one_output(self, name: str) -> None:
        settings = replace(load_recipe("xor").architectures["mlp"].settings, loss=name)
        model, x = xor_network(settings), torch.rand(5, 2)
        labels = torch.tensor([0, 1, 1, 0, 1])
        p, y = next(model.children())(x).squeeze(1).sigmoid(), labels.float()
        textbook = {"bce": nn.BCELoss(), "mse": nn.MSELoss()}[name](p, y)
        assert loss(settings, model(x), labels).item() == pytest.approx(textbook.item(), rel=1e-5)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    """What `train --show-settings` prints."""
    assert main(["train", "--show-settings", *map(str, arguments)]) == 0
    return tomllib.loads(capsys.readouterr().out)


class TestSources:
    def test_option_over_file_over_architecture(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "settings.toml"
        file.write_text('[mnist]\narch = "mlp"\nepochs = 3\nhidden = [9]\n[xor]\nseed = 7\n')
        default = load_recipe("mnist").architectures["mlp"].settings
        settings = shown(capsys, "mnist", "--config", file, "--epochs", "4", "--batch-norm")[
            "mnist"
        ]
        assert settings["arch"] == "mlp"
        assert (settings["epochs"], settings["hidden"]) == (4, [9])
        assert settings["batch_norm"] is True
        assert settings["learning_rate"] == default.learning_rate
        both = shown(capsys, "all", "--config", file)
        assert (both["mnist"]["epochs"], both["mnist"]["seed"], both["xor"]["seed"]) == (3, 0, 7)

    def test_another_optimizer_brings_its_own_learning_rate(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings = shown(capsys, "xor", "--optimizer", "adam")["xor"]
        assert (settings["optimizer"], settings["learning_rate"]) == ("adam", 3e-3)
        settings = shown(capsys, "xor", "--optimizer", "adam", "--learning-rate", "0.5")["xor"]
        assert settings["learning_rate"] == 0.5
        settings = shown(capsys, "xor", "--optimizer", "sgd", "--momentum", "0.9")["xor"]
        assert settings["learning_rate"] == 0.1

    def test_what_is_shown_makes_the_same_run(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        deep = ["--arch", "mlp", "--hidden", "100,100,100,100,100,100", "--activation", "sigmoid"]
        first = shown(capsys, "mnist", *deep, "--optimizer", "sgd", "--learning-rate", "1e-5")
        assert first["mnist"]["hidden"] == 6 * [100]
        assert first["mnist"]["learning_rate"] == 1e-5
        assert main(["train", "mnist", "--show-settings", *deep]) == 0
        file = tmp_path / "settings.toml"
        file.write_text(capsys.readouterr().out)
        assert shown(capsys, "mnist", "--config", file) == tomllib.loads(file.read_text())

    def test_what_the_network_does_not_use_is_not_shown(self) -> None:
        assert "hidden" not in to_toml(run())

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "[mnist]\nactivatoin = 'tanh'",
                "[mnist] activatoin: expected one of arch, hidden, act",
            ),
            (
                "[mnist]\nepochs = '3'",
                "[mnist] epochs: expected a whole number of 1 or more, got '3'",
            ),
            ("[xor]\nseed = -1", "[xor] seed: expected a whole number of 0 or more, got -1"),
            ("[cifar]\nepochs = 3", "cifar: expected a table of a model: [mnist], [xor]"),
            ("epochs = 3", "epochs: expected a table of a model: [mnist], [xor]"),
            ("mnist = 3", "mnist: expected a table of a model: [mnist], [xor]"),
            (
                "[mnist]\narch = 'vit'",
                "[mnist] arch: model mnist has cnn, cnn-quick, mlp, not 'vit'",
            ),
            (
                "[mnist]\narch = ['mlp']",
                "[mnist] arch: model mnist has cnn, cnn-quick, mlp, not ['mlp']",
            ),
            ("[mnist]\nhidden = [3]", "[mnist] hidden: network cnn of model mnist does not use it"),
            ("[mnist]\nmomentum = 0.9", "[mnist] momentum: optimizer adamw has none, only sgd has"),
            ("[mnist", "--config"),
            (None, "No such file"),
        ],
    )
    def test_a_wrong_file(
        self,
        text: str | None,
        message: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        file = tmp_path / "wrong.toml"
        if text is not None:
            file.write_text(text)
        with pytest.raises(SystemExit) as caught:
            main(["train", "mnist", "--config", str(file)])
        assert caught.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert str(file) in error
        assert message in error

    def test_an_option_that_does_not_fit_is_named_as_one(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            main(["train", "xor", "--nesterov"])
        assert capsys.readouterr().err.endswith("--nesterov: it needs a momentum over 0\n")


class TestExample:
    def test_its_other_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        table = tomllib.loads(EXAMPLE.read_text())["mnist"]
        assert shown(capsys, "mnist", "--config", EXAMPLE)["mnist"].items() >= table.items()


def test_the_documented_table_is_that_of_the_code() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE
    )
    expected = [
        (
            name,
            KINDS[name].expected,
            f"`{list(v) if isinstance(v, tuple) else v}`",
            meanings()[name],
        )
        for name, v in asdict(Settings()).items()
    ]
    assert rows == expected
