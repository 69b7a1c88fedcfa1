import re
import shutil
from importlib import metadata
from pathlib import Path

import pytest

from training import sources
from training.sources import SourceError, handler_files, training_files, training_sha256


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the code, to change."""
    for package in ("handler", "training"):
        shutil.copytree(sources.ROOT / package, tmp_path / package)
    (tmp_path / "requirements.txt").write_text("ruff==0.17.6\n")
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    return tmp_path


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


@pytest.mark.parametrize(
    "name",
    [
        "data",
        "distributed",
        "evaluation",
        "export",
        "loop",
        "mnist",
        "mnist_data",
        "pipeline",
        "recipe",
        "vision",
    ],
)
def test_code_that_the_weights_depend_on_changes_the_digest(tree: Path, name: str) -> None:
    before = training_sha256("mnist")
    append(tree / "training" / f"{name}.py", "\nCHANGED = 1\n")
    assert training_sha256("mnist") != before


@pytest.mark.parametrize(
    "file",
    [
        "README.md",
        "requirements.txt",
        "handler/batching.py",
        "handler/card.py",
        "handler/images.py",
        "handler/mnist.py",
        "training/__main__.py",
        "training/archive.py",
        "training/cache.py",
        "training/checkpoints.py",
        "training/digits.py",
        "training/history.py",
        "training/listing.py",
        "training/recording.py",
        "training/registry.py",
        "training/report.py",
        "training/runs.py",
        "training/train.py",
        "training/xor.py",
    ],
)
def test_other_files_do_not_change_the_digest(tree: Path, file: str) -> None:
    before = training_sha256("mnist")
    if (tree / file).exists():
        append(tree / file, "\nCHANGED = 1\n")
    else:
        (tree / file).write_text("changed")
    assert training_sha256("mnist") == before


def test_mnist_is_not_part_of_xor(tree: Path) -> None:
    before = training_sha256("xor")
    for name in ("mnist", "mnist_data", "vision"):
        append(tree / "training" / f"{name}.py", "\nCHANGED = 1\n")
    assert training_sha256("xor") == before


def test_comments_docstrings_and_formatting_do_not_change_the_digest(tree: Path) -> None:
    file = tree / "training" / "mnist.py"
    before = training_sha256("mnist")
    changed = re.sub(r'"""(?=\S)', '"""Once more: ', file.read_text())
    changed = changed.replace("(0, 255)", "( 0,255 )")
    assert changed.count("Once more") > 3
    file.write_text(f"{changed}\n# A remark.\n")
    assert training_sha256("mnist") == before
    file.write_text(re.sub(r"epochs=\d+", "epochs=99", changed))
    assert training_sha256("mnist") != before


def test_handler_code_counts_once_a_recipe_computes_with_it(tree: Path) -> None:
    append(tree / "training" / "mnist.py", "\nfrom handler.images import to_mnist\n")
    before = training_sha256("mnist")
    append(tree / "handler" / "images.py", "\nCHANGED = 1\n")
    changed = training_sha256("mnist")
    assert changed != before
    append(tree / "handler" / "xor.py", "\nCHANGED = 1\n")
    assert training_sha256("mnist") == changed


@pytest.mark.parametrize(
    "statement",
    [
        "import training.extra",
        "import training.extra as other",
        "from training import extra",
        "from training.extra import NUMBER",
        "from . import extra",
        "from .extra import NUMBER",
        "def later():\n    from training.extra import NUMBER",
    ],
)
def test_every_form_of_import_is_followed(tree: Path, statement: str) -> None:
    (tree / "training" / "extra.py").write_text("import training.deeper.end\n")
    (tree / "training" / "deeper").mkdir()
    deeper = [tree / "training" / "deeper" / name for name in ("__init__.py", "end.py")]
    for file in deeper:
        file.touch()
    append(tree / "training" / "xor.py", f"\n{statement}\n")
    assert {tree / "training" / "extra.py", *deeper} <= set(training_files("xor"))


def test_another_torch_changes_the_digest_another_build_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digests = []
    for version in ("2.13.0+cpu", "2.13.0+cu130", "2.14.0"):
        monkeypatch.setattr(metadata, "version", {"torch": version}.__getitem__)
        digests.append(training_sha256("xor"))
    assert digests[0] == digests[1] != digests[2]


def test_a_handler_comes_with_what_it_imports_only() -> None:
    entry, *modules = [str(file.relative_to(sources.ROOT)) for file in handler_files("xor")]
    assert entry == "handler/xor.py"
    assert "handler/batching.py" in modules
    assert "handler/images.py" not in modules
    assert "handler/mnist.py" not in modules


def test_a_missing_module_is_named() -> None:
    with pytest.raises(SourceError, match=r"model none has no handler module handler/none\.py"):
        handler_files("none")
    with pytest.raises(SourceError, match=r"model none has no training module training/none\.py"):
        training_sha256("none")
