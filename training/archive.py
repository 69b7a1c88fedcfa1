"""From TorchScript and a model card to a `.mar`, the same bytes for the same inputs."""

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from handler.card import CARD_FILE, CONFIG_FILE, TORCHSCRIPT_FILE, ModelCard
from server.store import read_archive
from training.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
_MANIFEST = "MAR-INF/MANIFEST.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold
_LIBRARIES = ("torch", "torchvision", "numpy", "torch-model-archiver")


class ArchiveError(Exception):
    """The archive cannot be built; the message says what is missing."""


def build(recipe: Recipe, card: ModelCard, torchscript: bytes, store: Path) -> Path:
    """Pack one model with torch-model-archiver, and put it into the store in one step.

    Args:
        recipe: its name, and how a worker shall batch.
        card: goes in as `model.json`.
        torchscript: goes in as `model.pt`.
        store: the directory; an archive of the name is replaced when the new one is complete.

    Returns:
        The archive's path.

    Raises:
        ArchiveError: there is no handler module for the model, or the archiver failed.
    """
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix=".build-") as temporary:
        stage = Path(temporary)
        extra = stage / "extra"
        extra.mkdir()
        (stage / TORCHSCRIPT_FILE).write_bytes(torchscript)
        (stage / CONFIG_FILE).write_text(_model_config(recipe))
        (extra / CARD_FILE).write_text(card.to_json())
        entry, *modules = handler_files(recipe.name)
        handler = stage / f"{recipe.name}_handler.py"
        shutil.copyfile(entry, handler)
        for module in modules:
            copy = extra / module.relative_to(ROOT)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(module, copy)
        command = [str(Path(sys.executable).with_name("torch-model-archiver"))]
        command += ["--model-name", recipe.name, "--version", card.version]
        command += ["--serialized-file", str(stage / TORCHSCRIPT_FILE)]
        command += ["--handler", str(handler), "--extra-files", str(extra)]
        command += ["--config-file", str(stage / CONFIG_FILE), "--export-path", str(stage)]
        # The archiver removes and fills a directory of the model's name in the temporary directory.
        (stage / "tmp").mkdir()
        environment = os.environ | {"TMPDIR": str(stage / "tmp")}
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise ArchiveError(f"torch-model-archiver failed:\n{result.stderr.strip()}")
        archive = f"{recipe.name}.mar"
        _rewrite(stage / archive, stage / "reproducible.mar")
        return (stage / "reproducible.mar").replace(store / archive)


def handler_files(name: str) -> list[Path]:
    """The handler module of a model, then the modules of `handler/` that it needs, sorted.

    Raises:
        ArchiveError: there is no handler module.
    """
    entry = ROOT / "handler" / f"{name}.py"
    if not entry.is_file():
        raise ArchiveError(f"model {name} has no handler module handler/{name}.py")
    needed = {ROOT / "handler" / "__init__.py"}
    unread = [entry]
    while unread:
        for node in ast.walk(ast.parse(unread.pop().read_bytes())):
            if not isinstance(node, ast.ImportFrom):
                continue
            module = node.module or ""
            # Either `from handler.x import y` or `from handler import x`.
            for imported in [module, *(f"{module}.{alias.name}" for alias in node.names)]:
                file = ROOT / f"{imported.replace('.', '/')}.py"
                if imported.startswith("handler.") and file.is_file() and file not in needed:
                    needed.add(file)
                    unread.append(file)
    return [entry, *sorted(needed)]


def source_sha256(name: str) -> str:
    """Digest of all that an archive is made with, besides the data and the machine."""
    files = [*sorted((ROOT / "training").glob("*.py")), *handler_files(name)]
    digest = hashlib.sha256()
    for file in [*files, ROOT / "requirements" / "torch.txt"]:
        digest.update(f"{file.relative_to(ROOT)}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def is_current(file: Path, name: str) -> bool:
    """Whether an archive of a model was made with the code and pins that are here now.

    Raises:
        StoreError: it is missing or damaged.
    """
    card = read_archive(file).card
    return card is not None and card.source_sha256 == source_sha256(name)


def library_versions() -> dict[str, str]:
    """What the model was made with."""
    return {name: metadata.version(name) for name in _LIBRARIES}


def git_commit() -> str:
    """The commit checked out, with `-dirty` where files differ from it; empty without git."""
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(ROOT), *arguments],  # noqa: S607 (whichever git there is)
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{commit}-dirty" if status else commit


def _model_config(recipe: Recipe) -> str:
    return f"""\
# Requests that a worker takes at once; milliseconds that the first waits for others under a plain
# TorchServe. The least is 1: it reads 0 as its default, 100. `python -m server` has none wait.
batchSize: {recipe.max_batch_size}
maxBatchDelay: {recipe.max_batch_delay}
# Seconds. Where an archive has this file, TorchServe takes both from here or its own defaults of
# 120, and ignores config.properties.
responseTimeout: 60
startupTimeout: 120
"""


def _rewrite(source: Path, target: Path) -> None:
    """Copy an archive, sorted and without the times that the archiver put in."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in sorted(old.namelist()):
            content = old.read(name)
            if name == _MANIFEST:
                manifest = json.loads(content) | {"createdOn": "01/01/1980 00:00:00"}
                content = json.dumps(manifest, indent=2).encode()
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            new.writestr(entry, content, zipfile.ZIP_DEFLATED)
