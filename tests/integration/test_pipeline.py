import hashlib
import io
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tests.blobs import BLOBS, blobs, run, trained
from tests.serving import ROOT
from tests.untrained import make_card, served_model
from training import cache, sources
from training.__main__ import main
from training.augment import affine
from training.cache import CacheError, Entry
from training.data import Data, Split
from training.evaluation import evaluate
from training.export import ExportError, ServedModel, to_torchscript
from training.pipeline import GateError, Run
from training.recipe import Augmentation
from training.registry import MODELS, load_recipe
from training.settings import LEARNING_RATES, Settings
from training.train import train


@pytest.fixture(autouse=True)
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the entries of model xor are, in a cache of this test's own."""
    monkeypatch.setenv("TRAINING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("training.train.ARTIFACTS", tmp_path / "artifacts")
    return tmp_path / "cache" / "xor"


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, training anything fails the test."""

    def fail(*_: object, **__: object) -> None:
        pytest.fail("trained")

    return lambda: monkeypatch.setattr("training.pipeline.train", fail)


class TestPipeline:
    def test_the_same_seed_gives_the_same_model(
        self, entries: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = trained()
        monkeypatch.setenv("TRAINING_CACHE", f"{entries.parent}-2")
        again = trained()
        assert again.directory != first.directory
        assert (again.card, again.torchscript) == (first.card, first.torchscript)
        assert trained(seed=1).torchscript != first.torchscript

    @pytest.mark.parametrize("optimizer", LEARNING_RATES)
    def test_every_optimizer_learns(self, optimizer: str) -> None:
        entry = trained(optimizer=optimizer, learning_rate=3 * LEARNING_RATES[optimizer])
        assert entry.card.metrics["test"]["accuracy"] > 0.8

    @pytest.mark.parametrize("loss", ["bce", "mse"])
    def test_every_loss_learns(self, loss: str) -> None:
        entry = trained(loss=loss, label_smoothing=0.1)
        assert entry.card.metrics["test"]["accuracy"] > 0.8

    @pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
    def test_schedules_and_augmentation(self, schedule: str) -> None:
        def jitter(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            return x + 0.1 * torch.randn(x.shape, generator=generator)

        line = replace(BLOBS.architectures["line"], augmentation=Augmentation(jitter))
        entry = trained(replace(BLOBS, architectures={"line": line}), schedule=schedule)
        assert entry.card.metrics["test"]["accuracy"] > 0.8

    def test_a_model_under_the_gate_is_discarded(self, entries: Path) -> None:
        strict = replace(BLOBS.architectures["line"], min_accuracy=1.01)
        with pytest.raises(
            GateError, match=r"validation accuracy .* is under 1\.01; the model was"
        ):
            trained(replace(BLOBS, architectures={"line": strict}))
        assert list(entries.iterdir()) == []

    def test_a_stuck_run_starts_again_and_says_so(self, capsys: pytest.CaptureFixture[str]) -> None:
        def stuck_once(_: Settings) -> nn.Module:
            layer = nn.Linear(2, 2)
            if torch.initial_seed() < 5:
                layer.weight.register_hook(torch.zeros_like)
                layer.bias.register_hook(torch.zeros_like)
                nn.init.zeros_(layer.weight)
            return layer

        stuck = {"line": replace(BLOBS.architectures["line"], build=stuck_once)}
        entry = trained(replace(BLOBS, architectures=stuck, attempts=3), seed=3)
        assert entry.card.seed == 5
        printed = capsys.readouterr().out
        assert "xor (line, seed 4) is stuck: validation accuracy 0.5000 is under 0.8" in printed
        assert "starting again with seed 5" in printed

    def test_the_card_says_where_the_model_comes_from(self) -> None:
        entry = trained()
        card = entry.card
        assert card.name == "xor"
        assert card.architecture == "line"
        assert card.libraries["torch"] == torch.__version__
        assert card.data_sha256 == blobs(Path()).sha256
        assert card.source_sha256 == sources.training_sha256("xor")
        assert card.torchscript_sha256 == hashlib.sha256(entry.torchscript).hexdigest()
        assert len(card.metrics["test"]["label_shares"]) == 2
        assert entry.parameters == 6
        scripted = torch.jit.load(io.BytesIO(entry.torchscript))
        example = torch.tensor(card.example["instances"])
        assert scripted(example).argmax(dim=1).tolist() == [card.example_label]


class TestCache:
    def test_the_same_run_is_not_trained_again(
        self, no_training: Callable[[], None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        first = trained()
        no_training()
        assert trained() == first
        assert "xor: already trained with this code, data, " in capsys.readouterr().out

    @pytest.mark.parametrize(
        "other",
        [
            run(seed=1),
            run(epochs=21),
            run(learning_rate=0.2),
            run(optimizer="adam"),
            run(weight_decay=0.1),
            run(loss="mse"),
            run(replace(BLOBS, data=lambda _: Data(blobs(_).train, blobs(_).test, blobs(_).test))),
            run(replace(BLOBS, architectures={"other": BLOBS.architectures["line"]})),
        ],
        ids=[
            "seed",
            "epochs",
            "learning rate",
            "optimizer",
            "weight decay",
            "loss",
            "data",
            "architecture",
        ],
    )
    def test_other_settings_or_data_are_trained(self, other: Run, entries: Path) -> None:
        trained()
        train(other)
        assert len(list(entries.iterdir())) == 2

    def test_settings_that_the_network_does_not_use_change_nothing(
        self, no_training: Callable[[], None]
    ) -> None:
        first = trained()
        no_training()
        assert trained(hidden=(3,)) == first

    def test_other_training_code_is_trained(
        self, entries: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert trained().is_current
        monkeypatch.setattr("training.train.training_sha256", lambda _: "other")
        assert not trained().is_current
        assert len(list(entries.iterdir())) == 2

    def test_the_weights_are_those_of_the_torchscript(self) -> None:
        entry = trained()
        network = nn.Linear(2, 2)
        network.load_state_dict(torch.load(entry.directory / "weights.pt", weights_only=True))
        x = blobs(Path()).test.x
        scripted = torch.jit.load(io.BytesIO(entry.torchscript))
        with torch.inference_mode():
            assert torch.allclose(network(x).softmax(dim=1), scripted(x), atol=1e-6)

    @pytest.mark.parametrize("name", ["model.pt", "weights.pt", "entry.json", "SHA256SUMS"])
    @pytest.mark.parametrize("damage", ["altered", "empty", "missing"])
    def test_a_corrupt_entry_is_named_and_trained_again(
        self, name: str, damage: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        entry = trained()
        file = entry.directory / name
        content = file.read_bytes()
        if damage == "missing":
            file.unlink()
        else:
            middle = len(content) // 2
            flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            file.write_bytes(flipped if damage == "altered" else b"")
        with pytest.raises(CacheError, match=rf"cache entry {entry.directory} is corrupt: "):
            cache.load(entry.directory)
        assert cache.entries("xor") == []
        assert f"warning: cache entry {entry.directory} is corrupt: " in capsys.readouterr().err
        assert trained() == entry
        assert f"cache entry {entry.directory} is corrupt: " in capsys.readouterr().out
        assert cache.load(entry.directory) == entry

    def test_another_release_of_the_card_is_read(self) -> None:
        entry = trained()
        file = entry.directory / "entry.json"
        values = json.loads(file.read_bytes())
        values["card"] |= {"schema": 7, "unknown": 1}
        file.write_text(json.dumps(values))
        names = ("model.pt", "weights.pt", "entry.json")
        sums = cache._sums({name: (entry.directory / name).read_bytes() for name in names})
        (entry.directory / "SHA256SUMS").write_text(sums)
        assert cache.load(entry.directory) == entry
        checked = subprocess.run(
            ["sha256sum", "--check", "SHA256SUMS"],
            cwd=entry.directory,
            check=False,
            capture_output=True,
        )
        assert checked.returncode == 0

    def test_an_interruption_leaves_no_half_entry(
        self, entries: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(cache, "_sums", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trained()
        assert list(entries.iterdir()) == []

    def test_what_a_killed_training_left_is_not_an_entry(
        self, entries: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        entry = trained()
        (entries / ".partial-killed" / entry.directory.name).mkdir(parents=True)
        capsys.readouterr()
        assert cache.entries("xor") == [entry]
        assert capsys.readouterr().err == ""

    def test_a_cache_that_cannot_be_written_is_told_before_training(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_training: Callable[[], None]
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("TRAINING_CACHE", str(tmp_path / "file"))
        no_training()
        with pytest.raises(OSError, match="file"):
            trained()

    def test_the_newest_entry_is_the_one_trained_last(self) -> None:
        first, second = trained(), trained(seed=1)
        assert cache.newest("xor") == second
        trained()  # which finds the first in the cache
        assert cache.newest("xor") == first
        assert [entry.card.seed for entry in cache.entries("xor")] == [0, 1]

    def test_entries_of_other_training_code_are_not_the_newest(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trained()
        monkeypatch.setattr(cache, "training_sha256", lambda _: "other")
        with pytest.raises(CacheError, match="run `python -m training train xor`"):
            cache.newest("xor")

    def test_an_entry_is_found_by_its_digest(self) -> None:
        first, second = trained(), trained(seed=1)

        def find(digits: str) -> Entry:
            return cache.find(f"xor@{digits}")

        assert cache.find("xor") == second
        for entry in (first, second):
            assert find(entry.card.torchscript_sha256[:12]) == entry
        with pytest.raises(CacheError, match="no xor with a TorchScript SHA-256 abc123"):
            find("abc123xyz")
        with pytest.raises(CacheError, match="several TorchScripts begin so"):
            find("")


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
        assert 800_000 < multiply_adds <= 1_000_000

    def test_augmentation_moves_but_keeps_the_ink(self) -> None:
        image = torch.zeros(50, 28, 28, dtype=torch.uint8)
        image[:, 8:20, 12:16] = 255
        moved = affine(image, torch.Generator().manual_seed(0))
        again = affine(image, torch.Generator().manual_seed(0))
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
        assert str(ROOT).encode() not in first

    def test_a_difference_is_an_error(self) -> None:
        model = served_model("xor")

        class Skewed(nn.Module):
            def forward(self, logits: torch.Tensor) -> torch.Tensor:
                if torch.jit.is_scripting():  # type: ignore[attr-defined]
                    logits = logits + torch.tensor([0.0, 4e-4])
                return logits

        skewed = ServedModel(model.normalise, nn.Sequential(model.network, Skewed())).eval()
        with pytest.raises(ExportError, match=r"probabilities by up to \d\.\de-0[45]"):
            to_torchscript(skewed, torch.rand(5, 2))

    def test_the_temperature_is_in_the_torchscript(self) -> None:
        model, x = served_model("mnist"), torch.rand(5, 28, 28)
        model.temperature = 0.5
        loaded = torch.jit.load(io.BytesIO(to_torchscript(model, x)))
        with torch.inference_mode():
            expected = (2 * model.logits(x)).softmax(dim=1)
            assert torch.allclose(loaded(x), expected, atol=1e-6)

    def test_nan_output_fails_export(self) -> None:
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


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command trains clouds of points, whatever the model."""
    monkeypatch.setattr("training.runs.load_recipe", lambda name: replace(BLOBS, name=name))


class TestCommand:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["cifar"],
            ["xor", "--arch", "cnn"],
            ["mnist", "--arch", "vit"],
            ["mnist", "--arch", "cnn", "--dropout", "0.5"],
            ["mnist", "--activation", "swish"],
            ["mnist", "--momentum", "0.9"],
            ["mnist", "--batch-size", "-1"],
            ["mnist", "--hidden", "8,"],
            ["xor", "--batch-norm"],
            ["mnist", "--epochs", "0"],
            ["mnist", "--epochs", "many"],
            ["mnist", "--dropout", "1"],
            ["mnist", "--hidden", "0"],
            ["mnist", "--learning-rate", "0"],
            ["mnist", "--learning-rate", "inf"],
            ["mnist", "--seed", "-1"],
            ["mnist", "--optimizer", "lion"],
            ["mnist", "--device", "tpu"],
            ["mnist", "--unknown"],
        ],
    )
    def test_wrong_usage(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["train", *arguments])
        assert caught.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("python -m training")
        assert (arguments[-2] if len(arguments) > 2 else arguments[-1]) in error

    def test_no_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main([])
        assert caught.value.code == 2
        assert "error: " in capsys.readouterr().err

    def test_under_the_gate(self, entries: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", "xor", "--epochs", "1"]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: xor: validation ")
        assert error.endswith("; the model was discarded")
        assert list(entries.iterdir()) == []

    @pytest.mark.usefixtures("fast")
    def test_the_summary_is_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", "xor"]) == 0
        printed = capsys.readouterr().out
        entry = cache.newest("xor")
        assert "xor: line, 6 parameters, seed 0\n" in printed
        assert f"{entry.card.torchscript_sha256[:12]}, in {entry.directory}\n" in printed

    @pytest.mark.usefixtures("fast")
    def test_a_report_is_in_a_directory_of_its_run(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["train", "xor", "--seed", "3"]) == 0
        (directory,) = (tmp_path / "artifacts").iterdir()
        assert re.fullmatch(r"xor-line-3-\d{8}T\d{6}Z", directory.name)
        told = re.search(r"^xor: report in (.*)$", capsys.readouterr().out, re.MULTILINE)
        assert told
        assert Path(told[1]).parent == directory
        assert Path(told[1]).is_file()

    @pytest.mark.usefixtures("fast")
    def test_what_is_told_fits_a_terminal(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", "xor"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) < 24
        # Directories of tests have longer names than those of users.
        assert max(len(line.partition(" in ")[0]) for line in lines) <= 80

    @pytest.mark.usefixtures("fast")
    def test_event_files_have_the_history(self, tmp_path: Path) -> None:
        assert main(["train", "xor", "--tensorboard"]) == 0
        (directory,) = (tmp_path / "artifacts").iterdir()
        history = json.loads((directory / "metrics.json").read_text())["history"]
        events = EventAccumulator(str(directory))
        events.Reload()
        epochs = history["epochs"]
        for tag, name in {
            "loss/training": "train_loss",
            "accuracy/validation": "validation_accuracy",
        }.items():
            scalars = events.Scalars(tag)
            assert [scalar.step for scalar in scalars] == [epoch["number"] for epoch in epochs]
            values = [epoch[name] for epoch in epochs]
            assert [scalar.value for scalar in scalars] == pytest.approx(values, rel=1e-6)
        assert "gradient norm/Linear 1" in events.Tags()["scalars"]

    @pytest.mark.usefixtures("fast")
    def test_a_report_that_fails_leaves_the_model_and_nothing_of_itself(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("training.report.write", full)
        assert main(["train", "xor"]) == 1
        assert list((tmp_path / "artifacts").iterdir()) == []
        assert cache.newest("xor").card.seed == 0

    def test_interrupted(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("training.pipeline.fit", interrupt)
        assert main(["train", "xor"]) == 130
        assert "interrupted" in capsys.readouterr().err

    @pytest.mark.usefixtures("fast")
    def test_a_full_disk_is_an_error(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device", "model.pt")

        monkeypatch.setattr(Path, "write_bytes", full)
        assert main(["train", "xor"]) == 1
        assert capsys.readouterr().err.endswith("No space left on device: 'model.pt'\n")


def test_every_recipe_is_registered_under_its_name() -> None:
    for name in MODELS:
        assert load_recipe(name).name == name
        assert make_card(name).input_shape == load_recipe(name).input_shape
