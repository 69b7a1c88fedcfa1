import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from handler.card import CARD_FILE, CONFIG_FILE, TORCHSCRIPT_FILE
from server.store import read_archive
from tests.archives import altered
from tests.unit.conftest import make_card, served_model
from training import archive
from training.__main__ import main
from training.data import Data, Split
from training.evaluation import evaluate
from training.export import ExportError, ServedModel, to_torchscript
from training.loop import OPTIMIZERS
from training.mnist import augment, mlp
from training.pipeline import GateError, Run, make
from training.recipe import Architecture, NetworkOptions, Recipe
from training.registry import MODELS, RECIPES


def blobs(_: Path) -> Data:
    """Two clouds of points that a line separates."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 2
    x = torch.randn(300, 2, generator=generator) + 6 * y.unsqueeze(1)
    parts = [Split(x[i : i + 100], y[i : i + 100]) for i in (0, 100, 200)]
    return Data(*parts)


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(
        name="xor",  # for its handler
        classes=("0", "1"),
        input_shape=(2,),
        architectures={"line": Architecture(build=lambda _: nn.Linear(2, 2), min_accuracy=0.8)},
        data=blobs,
        epochs=20,
        batch_size=10,
        learning_rate=0.1,
    )


def run(recipe: Recipe, store: Path, seed: int = 0) -> Path:
    return make(
        Run(
            recipe=recipe,
            architecture="line",
            network=NetworkOptions(),
            seed=seed,
            device=torch.device("cpu"),
            data_directory=store,
            store=store,
        )
    )


class TestPipeline:
    def test_the_same_seed_gives_the_same_bytes(self, recipe: Recipe, tmp_path: Path) -> None:
        first = run(recipe, tmp_path / "a").read_bytes()
        assert run(recipe, tmp_path / "b").read_bytes() == first
        other = run(recipe, tmp_path / "c", seed=1)
        assert other.read_bytes() != first

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_every_optimizer_learns(self, recipe: Recipe, tmp_path: Path, optimizer: str) -> None:
        rate = OPTIMIZERS[optimizer].learning_rate
        file = run(replace(recipe, optimizer=optimizer, learning_rate=rate * 3), tmp_path)
        card = read_archive(file).card
        assert card is not None
        assert card.metrics["test"]["accuracy"] > 0.8

    def test_one_cycle_and_augmentation(self, recipe: Recipe, tmp_path: Path) -> None:
        def jitter(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            return x + 0.1 * torch.randn(x.shape, generator=generator)

        assert run(replace(recipe, one_cycle=True, augment=jitter), tmp_path).exists()

    def test_under_the_gate_the_old_archive_stays(self, recipe: Recipe, tmp_path: Path) -> None:
        old = run(recipe, tmp_path).read_bytes()
        strict = replace(recipe.architectures["line"], min_accuracy=1.01)
        with pytest.raises(GateError, match=r"validation accuracy .* is under 1\.01; not archived"):
            run(replace(recipe, architectures={"line": strict}), tmp_path)
        assert (tmp_path / "xor.mar").read_bytes() == old
        assert [path.name for path in tmp_path.iterdir()] == ["xor.mar"]

    def test_a_stuck_run_starts_again_and_says_so(
        self, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def stuck_once(_: NetworkOptions) -> nn.Module:
            layer = nn.Linear(2, 2)
            if torch.initial_seed() < 5:
                layer.weight.register_hook(torch.zeros_like)
                layer.bias.register_hook(torch.zeros_like)
                nn.init.zeros_(layer.weight)
            return layer

        stuck = {"line": Architecture(build=stuck_once, min_accuracy=0.8)}
        file = run(replace(recipe, architectures=stuck, attempts=3), tmp_path, seed=3)
        card = read_archive(file).card
        assert card is not None
        assert card.seed == 5
        printed = capsys.readouterr().out
        assert "xor (line, seed 4) is stuck: validation accuracy 0.5000 is under 0.8" in printed
        assert "starting again with seed 5" in printed

    def test_an_interruption_leaves_the_store_as_it_was(
        self, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(archive, "_rewrite", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_model_without_a_handler_is_told_before_training(
        self, recipe: Recipe, tmp_path: Path
    ) -> None:
        def no_data(_: Path) -> Data:
            pytest.fail("trained")

        with pytest.raises(archive.ArchiveError, match=r"no handler module handler/none\.py"):
            run(replace(recipe, name="none", data=no_data), tmp_path)

    def test_the_card_says_where_the_model_comes_from(self, recipe: Recipe, tmp_path: Path) -> None:
        file = run(recipe, tmp_path)
        with zipfile.ZipFile(file) as archive_:
            names = set(archive_.namelist())
            card = json.loads(archive_.read(CARD_FILE))
            config = archive_.read(CONFIG_FILE).decode()
            manifest = json.loads(archive_.read("MAR-INF/MANIFEST.json"))
        assert {"xor_handler.py", TORCHSCRIPT_FILE, "handler/batching.py"} <= names
        assert "handler/server.py" not in names
        assert "handler/images.py" not in names
        assert "batchSize: 64" in config
        assert manifest["model"]["handler"] == "xor_handler.py"
        assert card["libraries"]["torch"] == torch.__version__
        assert card["data_sha256"] == blobs(tmp_path).sha256
        assert len(card["metrics"]["test"]["label_shares"]) == 2


class TestNetworks:
    def test_the_convolutional_network_is_small(self) -> None:
        model = served_model("mnist", "cnn")
        multiply_adds = 0

        def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
            nonlocal multiply_adds
            per_output = next(iter(layer.parameters()))[0].numel()
            multiply_adds += per_output * output[0].numel()

        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(count)
        model(torch.zeros(1, 28, 28))
        assert 1_000_000 < multiply_adds <= 2_000_000

    def test_the_options_of_the_fully_connected_network(self) -> None:
        plain = mlp(NetworkOptions(hidden=(30, 20)))
        widths = [m.out_features for m in plain.modules() if isinstance(m, nn.Linear)]
        assert widths == [30, 20, 10]
        rich = mlp(NetworkOptions(hidden=(30,), dropout=0.5, batch_norm=True))
        kinds = [type(module).__name__ for module in rich.children()]
        assert kinds == ["Flatten", "Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"]

    def test_augmentation_moves_but_keeps_the_ink(self) -> None:
        image = torch.zeros(50, 28, 28, dtype=torch.uint8)
        image[:, 8:20, 12:16] = 255
        moved = augment(image, torch.Generator().manual_seed(0))
        again = augment(image, torch.Generator().manual_seed(0))
        assert moved.equal(again)
        assert moved.shape == image.shape
        assert not moved[0].equal(moved[1])
        ratio = moved.sum(dim=(1, 2)) / image.float().sum(dim=(1, 2))
        assert ratio.min() > 0.7
        assert ratio.max() < 1.4


class TestExport:
    def test_torchscript_answers_as_the_network_for_every_dtype(self) -> None:
        model = served_model("mnist")
        x = torch.randint(0, 256, (9, 28, 28), dtype=torch.uint8)
        loaded = torch.jit.load(io.BytesIO(to_torchscript(model, x)))
        with torch.inference_mode():
            expected = model(x)
            for dtype in (torch.uint8, torch.float32, torch.float64):
                assert torch.allclose(loaded(x.to(dtype)), expected, atol=1e-6)
        assert torch.allclose(expected.sum(dim=1), torch.ones(9))

    def test_the_bytes_do_not_depend_on_what_was_scripted_before(self) -> None:
        model, x = served_model("mnist"), torch.zeros(1, 28, 28)
        first = to_torchscript(model, x)
        to_torchscript(served_model("xor"), torch.zeros(1, 2))
        assert to_torchscript(model, x) == first
        assert str(archive.ROOT).encode() not in first

    def test_a_difference_is_an_error(self) -> None:
        model = served_model("xor")

        class Skewed(nn.Module):
            def forward(self, p: torch.Tensor) -> torch.Tensor:
                if torch.jit.is_scripting():  # type: ignore[attr-defined]
                    p = p + 1e-4
                return torch.cat([1 - p, p], dim=1)

        skewed = ServedModel(model.normalise, model.network, Skewed()).eval()
        with pytest.raises(ExportError, match=r"probabilities by up to 1\.0e-04"):
            to_torchscript(skewed, torch.rand(5, 2))

    def test_numbers_that_are_none_are_a_difference(self) -> None:
        model = served_model("xor")
        nn.init.constant_(next(model.network.parameters()), torch.nan)
        with pytest.raises(ExportError):
            to_torchscript(model, torch.rand(5, 2))


def test_evaluation_counts_what_it_says() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([1 - x, x], dim=1)

    split = Split(torch.tensor([0.9, 0.8, 0.4, 0.3]), torch.tensor([1, 1, 1, 0]))
    result = evaluate(Fixed(), split)
    assert result.instances == 4
    assert result.accuracy == 0.75
    assert result.min_confidence == pytest.approx(0.4)
    assert result.label_shares == (0.5, 0.5)
    logs = torch.tensor([0.9, 0.8, 0.4, 0.7]).log()
    assert result.log_loss == pytest.approx(-logs.mean().item())


class TestCommand:
    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["cifar"],
            ["xor", "--arch", "cnn"],
            ["mnist", "--arch", "vit"],
            ["mnist", "--epochs", "0"],
            ["mnist", "--epochs", "many"],
            ["mnist", "--dropout", "1"],
            ["mnist", "--hidden", "0"],
            ["mnist", "--learning-rate", "0"],
            ["mnist", "--seed", "-1"],
            ["mnist", "--optimizer", "lion"],
            ["mnist", "--device", "tpu"],
            ["mnist", "--unknown"],
        ],
    )
    def test_wrong_usage(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert "error: " in capsys.readouterr().err

    def test_under_the_gate(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["xor", "--epochs", "1", "--out", str(tmp_path)]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: xor: validation ")
        assert error.endswith(f"not archived, {tmp_path}/xor.mar is as it was")
        assert list(tmp_path.iterdir()) == []

    def test_what_is_there_is_not_trained(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in MODELS:
            (tmp_path / f"{name}.mar").touch()
        assert main(["all", "--missing", "--out", str(tmp_path)]) == 0
        assert capsys.readouterr().out.count("is there already") == len(MODELS)

    def test_an_archive_of_other_code_is_kept_and_remarked_on(
        self, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = run(recipe, tmp_path)
        arguments = ["xor", "--missing", "--out", str(tmp_path)]
        assert main(arguments) == 0
        assert capsys.readouterr().out.endswith(f"{file} is there already\n")
        altered(file, file.with_suffix(".new"), {CARD_FILE: make_card("xor").to_json().encode()})
        file.with_suffix(".new").replace(file)
        assert main(arguments) == 0
        assert "made with other code: `make train` builds it anew" in capsys.readouterr().out

    def test_interrupted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("training.pipeline.fit", interrupt)
        assert main(["xor", "--out", str(tmp_path)]) == 130


def test_every_recipe_is_registered_under_its_name() -> None:
    assert {name: recipe.name for name, recipe in RECIPES.items()} == {n: n for n in MODELS}
    for name in MODELS:
        assert make_card(name).input_shape == RECIPES[name].input_shape
