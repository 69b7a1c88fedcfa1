import json
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from handler.card import CARD_FILE, CONFIG_FILE, TORCHSCRIPT_FILE
from tests.archives import FAILING_HANDLER, altered, foreign
from tests.blobs import BLOBS, blobs, trained
from tests.serving import ROOT
from training import archive, cache, sources
from training.__main__ import main
from training.archive import ArchiveError, archive_file, pack, pack_stale, run_archiver
from training.cache import CacheError
from training.sources import SourceError


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty model store, beside a training cache of this test's own."""
    monkeypatch.setenv("TRAINING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the code, to change."""
    for package in ("handler", "training"):
        shutil.copytree(ROOT / package, tmp_path / "tree" / package)
    for module in (archive, sources):
        monkeypatch.setattr(module, "ROOT", tmp_path / "tree")
    return tmp_path / "tree"


def change(file: Path) -> None:
    file.write_text(f"{file.read_text()}\nCHANGED = 1\n")


def read(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


class TestPack:
    def test_what_is_in_it(self, store: Path) -> None:
        entry = trained()
        line = pack(entry, "1.0", store / "xor.mar")
        assert line.startswith(f"{store}/xor.mar: packed xor 1.0, TorchScript ")
        assert line.endswith(": new")
        content = read(store / "xor.mar")
        assert {"xor_handler.py", "handler/batching.py"} < content.keys()
        assert "handler/images.py" not in content
        assert content["xor_handler.py"] == (ROOT / "handler/xor.py").read_bytes()
        assert content[TORCHSCRIPT_FILE] == entry.torchscript
        assert b"batchSize: 64" in content[CONFIG_FILE]
        card = json.loads(content[CARD_FILE])
        assert card["version"] == "1.0"
        assert card["torchscript_sha256"] == entry.card.torchscript_sha256
        manifest = json.loads(content["MAR-INF/MANIFEST.json"])
        assert manifest["model"]["handler"] == "xor_handler.py"
        assert manifest["model"]["modelVersion"] == "1.0"
        assert [path.name for path in store.iterdir()] == ["xor.mar"]

    def test_the_same_inputs_give_the_same_bytes(self, store: Path) -> None:
        entry = trained()
        pack(entry, "1.0", store / "xor.mar")
        first = (store / "xor.mar").read_bytes()
        (store / "xor.mar").unlink()
        pack(cache.newest("xor"), "1.0", store / "xor.mar")
        assert (store / "xor.mar").read_bytes() == first
        # Both were packed within a second or so: no time may be in there at all.
        with zipfile.ZipFile(store / "xor.mar") as opened:
            assert {file.date_time for file in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}
            manifest = json.loads(opened.read("MAR-INF/MANIFEST.json"))
        assert manifest["createdOn"] == "01/01/1980 00:00:00"

    def test_neither_torch_nor_data_is_needed(self, store: Path) -> None:
        trained()
        code = (
            "import sys; from training.__main__ import main; code = main(sys.argv[1:]);"
            "sys.exit(code or not {'numpy', 'torch', 'torchvision'}.isdisjoint(sys.modules))"
        )
        for options in (["pack", "xor"], ["pack", "--stale", "xor"], ["train", "--missing", "xor"]):
            command = [sys.executable, "-c", code, *options, "--out", str(store)]
            subprocess.run(command, cwd=ROOT, check=True)
        assert [path.name for path in store.iterdir()] == ["xor.mar"]

    def test_versions_lie_side_by_side(self, store: Path) -> None:
        pack(trained(), "1.0", archive_file(store, "xor", "1.0"))
        pack(trained(seed=1), "2.0", archive_file(store, "xor", "2.0"))
        assert sorted(path.name for path in store.iterdir()) == ["xor-2.0.mar", "xor.mar"]
        assert json.loads(read(store / "xor-2.0.mar")[CARD_FILE])["version"] == "2.0"

    def test_other_weights_are_not_replaced_unless_forced(self, store: Path) -> None:
        file = store / "xor.mar"
        pack(trained(), "1.0", file)
        before = file.read_bytes()
        other = trained(seed=1)
        with pytest.raises(
            ArchiveError, match=r"holds xor 1\.0 with TorchScript .*--version.*--force"
        ):
            pack(other, "1.0", file)
        assert file.read_bytes() == before
        assert pack(other, "1.0", file, force=True).endswith(": trained anew, model card changed")
        assert read(file)[TORCHSCRIPT_FILE] == other.torchscript

    def test_another_version_is_not_replaced_unless_forced(self, store: Path) -> None:
        entry, file = trained(), store / "xor.mar"
        pack(entry, "3.0", file)
        with pytest.raises(ArchiveError, match=r"xor\.mar holds xor 3\.0, and "):
            pack(entry, "1.0", file)
        pack(entry, "1.0", file, force=True)

    def test_an_archive_of_others_is_not_replaced_unless_forced(self, store: Path) -> None:
        entry, file = trained(), foreign(store, "xor", FAILING_HANDLER)
        with pytest.raises(ArchiveError, match="holds an archive that this project did not build"):
            pack(entry, "1.0", file)
        pack(entry, "1.0", file, force=True)

    def test_two_files_never_hold_the_same_version(self, store: Path) -> None:
        entry = trained()
        pack(entry, "1.0", store / "mine.mar")
        with pytest.raises(ArchiveError, match=r"mine\.mar holds xor 1\.0 already: remove it"):
            pack(entry, "1.0", store / "xor.mar", force=True)

    @pytest.mark.parametrize("content", [b"", b"PK\3\4 and then nothing"])
    def test_a_corrupt_archive_is_replaced_and_told(self, store: Path, content: bytes) -> None:
        file = store / "xor.mar"
        file.write_bytes(content)
        assert pack(trained(), "1.0", file).endswith(": the old one cannot be read")
        assert archive.read_archive(file).name == "xor"

    def test_a_model_without_a_handler(self, store: Path, tree: Path) -> None:
        entry = trained()
        (tree / "handler" / "xor.py").unlink()
        with pytest.raises(SourceError, match=r"no handler module handler/xor\.py"):
            pack(entry, "1.0", store / "xor.mar")
        assert list(store.iterdir()) == []

    def test_what_the_archiver_says_is_told(self, store: Path) -> None:
        handler = store / "handler.py"
        with pytest.raises(ArchiveError, match=r"torch-model-archiver failed:\n(.|\n)*handler\.py"):
            run_archiver(store, "xor", "1.0", handler)

    def test_an_interruption_leaves_the_store_as_it_was(
        self, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        entry = trained()
        monkeypatch.setattr(archive, "_rewrite", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pack(entry, "1.0", store / "xor.mar")
        assert list(store.iterdir()) == []


class TestStale:
    """What `make serve` does to a store before it serves it."""

    def stale(self, store: Path) -> list[str]:
        return list(pack_stale("xor", store))

    def test_what_is_not_there_is_packed_and_what_is_current_is_left(self, store: Path) -> None:
        trained()
        (line,) = self.stale(store)
        assert line.endswith(": new")
        before = (store / "xor.mar").stat()
        assert self.stale(store) == []
        after = (store / "xor.mar").stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    @pytest.mark.parametrize("module", ["xor", "batching", "payload"])
    def test_changed_handler_code_is_packed_without_training(
        self, store: Path, tree: Path, module: str
    ) -> None:
        entry = trained()
        for version in ("1.0", "2.0"):
            pack(entry, version, archive_file(store, "xor", version))
        change(tree / "handler" / f"{module}.py")
        lines = self.stale(store)
        assert len(lines) == 2
        for line, version in zip(lines, ("2.0", "1.0"), strict=True):
            assert f"packed xor {version}, " in line
            assert line.endswith(": handler code changed")
            content = read(archive_file(store, "xor", version))
            assert any(b"CHANGED = 1" in text for text in content.values())
            assert content[TORCHSCRIPT_FILE] == entry.torchscript
        assert self.stale(store) == []

    def test_a_module_that_the_handler_no_longer_needs_goes(self, store: Path, tree: Path) -> None:
        (tree / "handler" / "extra.py").touch()
        handler = tree / "handler" / "xor.py"
        before = handler.read_text()
        handler.write_text(f"{before}\nimport handler.extra\n")
        pack(trained(), "1.0", store / "xor.mar")
        assert "handler/extra.py" in read(store / "xor.mar")
        handler.write_text(before)
        assert self.stale(store)[0].endswith(": handler code changed")
        assert "handler/extra.py" not in read(store / "xor.mar")

    def test_changed_worker_settings_are_packed(self, store: Path) -> None:
        pack(trained(), "1.0", store / "xor.mar")
        shutil.rmtree(cache.directory("xor"))
        trained(replace(BLOBS, max_batch_size=32))
        assert self.stale(store)[0].endswith(": worker settings changed")
        assert b"batchSize: 32" in read(store / "xor.mar")[CONFIG_FILE]

    def test_a_card_of_another_release_is_packed(self, store: Path) -> None:
        pack(trained(), "1.0", store / "current")
        altered(store / "current", store / "xor.mar", {CARD_FILE: b'{"name": "xor"}'})
        assert self.stale(store)[0].endswith(": model card changed")
        assert (store / "xor.mar").read_bytes() == (store / "current").read_bytes()

    def test_other_training_code_is_remarked_on(self, store: Path, tree: Path) -> None:
        entry = trained()
        pack(entry, "1.0", store / "xor.mar")
        change(tree / "training" / "loop.py")
        remark = (
            f"{store}/xor.mar: trained by other code than the present; `make train` trains anew"
        )
        assert self.stale(store) == [remark]
        change(tree / "handler" / "xor.py")
        packed, same_remark = self.stale(store)
        assert packed.endswith(": handler code changed")
        assert same_remark == remark
        assert read(store / "xor.mar")[TORCHSCRIPT_FILE] == entry.torchscript

    def test_of_equal_models_that_of_the_present_code_is_packed(
        self, store: Path, tree: Path
    ) -> None:
        pack(trained(), "1.0", store / "xor.mar")
        recipe = tree / "training" / "xor.py"
        before = recipe.read_text()
        change(recipe)
        trained()  # the same weights
        recipe.write_text(before)
        assert self.stale(store) == []

    def test_weights_trained_since_do_not_replace_others(self, store: Path) -> None:
        pack(trained(), "1.0", store / "xor.mar")
        trained(seed=1)
        assert self.stale(store) == []

    def test_a_model_trained_elsewhere_is_left_and_told(self, store: Path, tree: Path) -> None:
        pack(trained(), "1.0", store / "xor.mar")
        shutil.rmtree(cache.directory("xor"))
        assert self.stale(store) == []
        before = (store / "xor.mar").read_bytes()
        change(tree / "handler" / "xor.py")
        (line,) = self.stale(store)
        assert "xor.mar: left as it is although handler code changed: its model is not in" in line
        assert (store / "xor.mar").read_bytes() == before
        altered(store / "xor.mar", store / "x.mar", {CARD_FILE: b"{}"}).replace(store / "xor.mar")
        assert "the model card cannot be read" in self.stale(store)[1]

    def test_an_archive_of_others_is_left_and_told(self, store: Path) -> None:
        file = foreign(store, "xor", FAILING_HANDLER)
        before = file.read_bytes()
        trained()
        assert self.stale(store) == [f"{file}: not built by this project"]
        assert file.read_bytes() == before

    def test_a_corrupt_archive_is_as_good_as_none(self, store: Path) -> None:
        (store / "xor.mar").write_bytes(b"half")
        trained()
        assert self.stale(store)[0].endswith(": the old one cannot be read")

    def test_another_version_is_enough(self, store: Path) -> None:
        pack(trained(), "2.0", store / "xor-2.0.mar")
        assert self.stale(store) == []

    def test_nothing_there_and_nothing_trained(self, store: Path) -> None:
        with pytest.raises(CacheError, match="run `python -m training train xor`"):
            self.stale(store)


class TestCommand:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["cifar"],
            ["cifar@12"],
            ["xor", "--version", "../2"],
            ["xor", "--version", ""],
            ["--stale", "--version", "2.0"],
            ["--stale", "--force"],
            ["--stale", "xor@12"],
        ],
    )
    def test_wrong_usage(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["pack", *arguments])
        assert caught.value.code == 2
        assert "python -m training pack: error: " in capsys.readouterr().err

    def test_every_model_is_packed_that_can_be(
        self, store: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trained()
        for stale in ([], ["--stale"]):
            assert main(["pack", "--out", str(store), *stale]) == 1
            printed = capsys.readouterr()
            assert "error: the training cache has no mnist of the present training" in printed.err
            assert "run `python -m training train mnist`" in printed.err
        assert [path.name for path in store.iterdir()] == ["xor.mar"]

    def test_a_version_and_a_digest(self, store: Path) -> None:
        old = trained().card.torchscript_sha256
        trained(seed=1)
        arguments = ["pack", f"xor@{old[:8]}", "--version", "2.0", "--out", str(store)]
        assert main(arguments) == 0
        assert archive.read_archive(store / "xor-2.0.mar").torchscript_sha256 == old

    def test_a_refusal_is_an_error(self, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["pack", "xor", "--out", str(store)]
        trained()
        assert main(arguments) == 0
        trained(seed=1)
        assert main(arguments) == 1
        assert f"error: {store}/xor.mar holds xor 1.0 with " in capsys.readouterr().err
        assert main([*arguments, "--force"]) == 0

    def test_only_models_that_the_store_lacks_are_trained(
        self, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("training.runs.load_recipe", lambda name: replace(BLOBS, name=name))
        pack(trained(), "2.0", store / "xor-2.0.mar")
        (store / "mnist.mar").write_bytes(b"half")
        shutil.rmtree(cache.directory("xor"))
        assert main(["train", "--missing", "--out", str(store)]) == 0
        assert f"{store}/xor-2.0.mar is there\n" in capsys.readouterr().out
        assert cache.entries("xor") == []
        assert cache.newest("mnist").card.name == "mnist"


class TestList:
    def table(self, store: Path, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
        """Cells of each line; columns are at least two spaces apart."""
        assert main(["list", "--out", str(store)]) == 0
        return [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()]

    @pytest.mark.parametrize("name", ["store", "none"])
    def test_an_empty_store(
        self, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (head,) = self.table(tmp_path / name, capsys)
        assert head[:3] == ["MODEL", "VERSION", "TEST ACCURACY"]

    def test_archives_and_trained_models(
        self, store: Path, tree: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        packed, other = trained(), trained(seed=1)
        pack(packed, "1.0", store / "xor.mar")
        foreign(store, "mnist", FAILING_HANDLER)
        foreign(store, "cifar", FAILING_HANDLER)
        (store / "a.mar").write_bytes(b"half")
        capsys.readouterr()
        _, corrupt, unknown, not_ours, ours, unpacked = self.table(store, capsys)
        assert corrupt == ["-", "-", "-", "0 kB", "-", "corrupt", f"{store}/a.mar"]
        assert unknown[:2] == ["cifar", "1.0"]
        assert unknown[5] == "not a model of this repository"
        assert not_ours[5] == "not built by this project"
        size = f"{(store / 'xor.mar').stat().st_size / 1000:.0f} kB"
        digest = packed.card.torchscript_sha256[:12]
        assert ours == ["xor", "1.0", "1.0000", size, digest, "current", f"{store}/xor.mar"]
        assert unpacked[:2] == ["xor", "-"]
        assert unpacked[4:6] == [other.card.torchscript_sha256[:12], "not packed"]
        change(tree / "handler" / "xor.py")
        change(tree / "training" / "loop.py")
        *_, ours, unpacked = self.table(store, capsys)
        assert ours[5].startswith("stale: handler code changed; trained by other code than ")
        assert unpacked[5].startswith("not packed; trained by other code than ")


class TestCompare:
    def test_an_archive_and_an_entry(
        self, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("training.compare.load_recipe", lambda _: BLOBS)
        bad = {"line": replace(BLOBS.architectures["line"], min_accuracy=0.0)}
        flat = replace(BLOBS, architectures=bad)
        good, poor = trained(), trained(flat, epochs=1, learning_rate=1e-9, seed=3)
        pack(good, "1.0", store / "xor.mar")
        reference = f"xor@{poor.card.torchscript_sha256[:12]}"
        capsys.readouterr()
        assert main(["compare", f"{store}/xor.mar", reference]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == [f"{store}/xor.mar", reference]
        (accuracy,) = (line.split()[2:] for line in lines if line.startswith("validation acc"))
        right, wrong = (float(share) for share in accuracy)
        differ = round(100 * (right - wrong))
        verdict = (
            f"Labels differ for {differ} of 100 validation instances: the first is correct for "
            f"{differ} of them, the second for 0."
        )
        head, *pairs = (line.split(maxsplit=3) for line in lines[lines.index(verdict) + 1 :])
        assert head == ["FIRST", "SECOND", "COUNT", "INSTANCES"]
        assert sum(int(count) for _, _, count, _ in pairs) == differ
        assert len(lines) < 24

    def test_other_data_is_told(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trained()
        other = blobs(Path())
        other.train.x[0] += 1
        monkeypatch.setattr(
            "training.compare.load_recipe", lambda _: replace(BLOBS, data=lambda _: other)
        )
        assert main(["compare", "xor", "xor"]) == 0
        assert capsys.readouterr().out.count("xor was trained on other data") == 2

    def test_what_cannot_be_compared(self, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
        trained()
        file = foreign(store, "xor", FAILING_HANDLER)
        assert main(["compare", "xor", str(file)]) == 1
        assert "has no model card: this project did not build it" in capsys.readouterr().err
        assert main(["compare", "xor", str(store / "none.mar")]) == 1
        assert "none.mar cannot be read: [Errno 2] No such file" in capsys.readouterr().err
        trained(replace(BLOBS, name="mnist"))
        assert main(["compare", "xor", "mnist"]) == 1
        assert "xor is model xor and mnist is model mnist" in capsys.readouterr().err
