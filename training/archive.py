"""TorchServe archives of trained models: packing, and what is stale in a store.

A version names one TorchScript. An archive is replaced by the same name, version and TorchScript,
with handler code, card or worker settings of now; other weights or another project's archive are
replaced only if that is forced. Two versions of a model are two files, `mnist.mar` (1.0) and
`mnist-2.0.mar`.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from handler.card import CARD_FILE, CONFIG_FILE, TORCHSCRIPT_FILE, ModelCard
from training import cache
from training.cache import Entry
from training.errors import TrainingError
from training.sources import ROOT, handler_files, training_sha256

DEFAULT_VERSION = "1.0"
OTHER_TRAINING_CODE = "trained by other code than the present; `make train` trains anew"
_MANIFEST = "MAR-INF/MANIFEST.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can hold


class ArchiveError(TrainingError):
    """An archive cannot be built, read or replaced; the message says which and why."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A `.mar` file.

    Attributes:
        file: its path.
        name: of the model, from the manifest, as in the URL.
        version: of the model, from the manifest, as in the URL.
        content: of each file in it; only the manifest's where this project did not build it.
    """

    file: Path
    name: str
    version: str
    content: dict[str, bytes]

    @property
    def is_ours(self) -> bool:
        """Whether this project built the archive: it has a model card."""
        return CARD_FILE in self.content

    @property
    def torchscript_sha256(self) -> str:
        """Digest of the TorchScript itself, whatever the card says."""
        return hashlib.sha256(self.content.get(TORCHSCRIPT_FILE, b"")).hexdigest()

    def card(self) -> ModelCard:
        """The model card.

        Raises:
            ArchiveError: it cannot be read.
        """
        try:
            return ModelCard.from_json(self.content[CARD_FILE])
        except (KeyError, TypeError, ValueError) as error:
            raise ArchiveError(f"{self.file}: the model card cannot be read: {error}") from None


def read_archive(file: Path) -> Archive:
    """Read an archive and check that all of it can be unpacked.

    Raises:
        ArchiveError: it is missing, damaged, or not a TorchServe archive.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            # Others' archives may have gigabytes.
            kept = names if CARD_FILE in names else [_MANIFEST]
            content = {name: archive.read(name) for name in kept}
        model = json.loads(content[_MANIFEST])["model"]
        version = model.get("modelVersion", DEFAULT_VERSION)
        return Archive(file=file, name=model["modelName"], version=version, content=content)
    except (
        *(OSError, EOFError, zipfile.BadZipFile, zlib.error),
        *(AttributeError, KeyError, TypeError, ValueError),
    ) as error:
        raise ArchiveError(f"{file} cannot be read: {error}") from None


def archives_of(name: str, store: Path) -> list[Archive]:
    """The readable archives of a model, of whatever version."""
    found = []
    for file in sorted(store.glob("*.mar")):
        with suppress(ArchiveError):
            found.append(read_archive(file))
    return [archive for archive in found if archive.name == name]


def archive_file(store: Path, name: str, version: str) -> Path:
    """Where an archive belongs: `NAME.mar` for version 1.0, `NAME-VERSION.mar` for another."""
    return store / (f"{name}.mar" if version == DEFAULT_VERSION else f"{name}-{version}.mar")


def pack(entry: Entry, version: str, file: Path, *, force: bool = False) -> str:
    """Pack a trained model with the handler code of now.

    Args:
        entry: the trained model.
        version: as in the URL, `/predictions/{name}/{version}`.
        file: the archive, which is replaced in one step.
        force: replace whatever is there.

    Returns:
        A line that says what was packed and why.

    Raises:
        ArchiveError: another archive is there, another file holds the same version, or the archiver
            failed.
        SourceError: there is no handler module for the model.
    """
    name = entry.card.name
    for other in archives_of(name, file.parent):
        if other.version == version and other.file != file:
            raise ArchiveError(f"{other.file} holds {name} {version} already: remove it first")
    content = _content(entry, version)
    reason = "new"
    if file.exists():
        try:
            archive = read_archive(file)
        except ArchiveError:
            reason = "the old one cannot be read"
        else:
            if not force:
                _check_replaceable(archive, entry, version)
            reason = _difference(archive, content) or "no change"
    _build(name, version, content, file)
    digest = entry.card.torchscript_sha256[:12]
    return f"{file}: packed {name} {version}, TorchScript {digest}: {reason}"


def pack_stale(name: str, store: Path) -> Iterator[str]:
    """Bring the archives of a model up to date, so that no old handler code is served in silence.

    Where the store has no archive of the model at all, its newest cache entry is packed.

    Yields:
        A line for each archive that was packed or needs attention.

    Raises:
        ArchiveError: the archiver failed.
        CacheError: neither the store nor the cache has the model.
        SourceError: there is no handler module for the model.
    """
    archives = archives_of(name, store)
    if not archives:
        file = archive_file(store, name, DEFAULT_VERSION)
        yield pack(cache.newest(name), DEFAULT_VERSION, file)
    entries = cache.entries(name)
    for archive in archives:
        state = examine(archive, entries)
        if state.stale and state.entry:
            yield pack(state.entry, archive.version, archive.file)
        elif state.stale:
            yield (
                f"{archive.file}: left as it is although {state.stale}: its model is not in the "
                f"training cache; `python -m training train {name}` trains it anew"
            )
        if state.remark:
            yield f"{archive.file}: {state.remark}"


@dataclass(frozen=True)
class State:
    """How an archive compares with what would be packed now.

    Attributes:
        entry: the trained model in it, if the cache has it.
        stale: why it would be packed differently; empty if it would not.
        remark: what its owner should know besides; may be empty.
    """

    entry: Entry | None = None
    stale: str = ""
    remark: str = ""


def examine(archive: Archive, entries: list[Entry]) -> State:
    """Compare an archive with the handler and training code of now.

    Args:
        archive: one of a registered model.
        entries: those of the same model, the one trained last first.

    Raises:
        SourceError: the model is not in the source tree.
    """
    if not archive.is_ours:
        return State(remark="not built by this project")
    digest = archive.torchscript_sha256
    same = [entry for entry in entries if entry.card.torchscript_sha256 == digest]
    entry = max(same, key=lambda entry: entry.is_current, default=None)
    wanted = _content(entry, archive.version) if entry else _handler_code(archive.name)
    try:
        source = (entry.card if entry else archive.card()).source_sha256
    except ArchiveError as error:
        return State(stale=_difference(archive, wanted), remark=str(error))
    is_current = source == training_sha256(archive.name)
    remark = "" if is_current else OTHER_TRAINING_CODE
    return State(entry, _difference(archive, wanted), remark)


def run_archiver(
    directory: Path, name: str, version: str, handler: Path, *options: str | Path
) -> Path:
    """Make an archive with torch-model-archiver.

    Args:
        directory: where the archive goes, as `{name}.mar`.
        name: of the model.
        version: of the model.
        handler: Python file of the handler.
        options: more of the archiver's own, such as `"--serialized-file", path`.

    Returns:
        The archive's path.

    Raises:
        ArchiveError: the archiver failed.
    """
    command: list[str | Path] = [Path(sys.executable).with_name("torch-model-archiver")]
    command += ["--model-name", name, "--version", version, "--handler", handler]
    command += ["--export-path", directory, *options]
    # The archiver empties and fills a directory of the model's name in the temporary directory.
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        environment = os.environ | {"TMPDIR": temporary}
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
    if result.returncode:
        raise ArchiveError(f"torch-model-archiver failed:\n{result.stderr.strip()}")
    return directory / f"{name}.mar"


def _content(entry: Entry, version: str) -> dict[str, bytes]:
    """What an archive of a trained model has besides its manifest, by file name."""
    card = replace(entry.card, version=version)
    return _handler_code(card.name) | {
        TORCHSCRIPT_FILE: entry.torchscript,
        CARD_FILE: card.to_json().encode(),
        CONFIG_FILE: _model_config(entry).encode(),
    }


def _handler_code(name: str) -> dict[str, bytes]:
    handler, *modules = handler_files(name)
    code = {str(module.relative_to(ROOT)): module.read_bytes() for module in modules}
    return code | {f"{name}_handler.py": handler.read_bytes()}


def _model_config(entry: Entry) -> str:
    return f"""\
# Requests that a worker takes at once; milliseconds that the first waits for others under a plain
# TorchServe. The least is 1: it reads 0 as its default, 100. `python -m server` has none wait.
batchSize: {entry.max_batch_size}
maxBatchDelay: {entry.max_batch_delay}
# Seconds. Where an archive has this file, TorchServe takes both from here or its own defaults of
# 120, and ignores config.properties.
responseTimeout: 60
startupTimeout: 120
"""


def _difference(archive: Archive, wanted: dict[str, bytes]) -> str:
    """What of an archive differs from the wanted content, as a reason to pack it; may be empty.

    Where the wanted content is handler code only, only that is compared.
    """
    data = {
        TORCHSCRIPT_FILE: "trained anew",
        CARD_FILE: "model card changed",
        CONFIG_FILE: "worker settings changed",
    }
    code = [content.keys() - data.keys() - {_MANIFEST} for content in (archive.content, wanted)]
    reasons = [
        reason
        for name, reason in data.items()
        if name in wanted and wanted[name] != archive.content.get(name)
    ]
    if any(archive.content.get(name) != wanted.get(name) for name in set.union(*code)):
        reasons.append("handler code changed")
    return ", ".join(reasons)


def _check_replaceable(archive: Archive, entry: Entry, version: str) -> None:
    """Refuse to replace anything but the same model.

    Raises:
        ArchiveError: it is another one.
    """
    name, digest = entry.card.name, entry.card.torchscript_sha256
    if not archive.is_ours:
        there = "an archive that this project did not build"
    elif (archive.name, archive.version) != (name, version):
        there = f"{archive.name} {archive.version}"
    elif archive.torchscript_sha256 != digest:
        there = f"{name} {version} with TorchScript {archive.torchscript_sha256[:12]}"
    else:
        return
    raise ArchiveError(
        f"{archive.file} holds {there}, and the one to be packed has TorchScript {digest[:12]}: "
        f"pack it as another --version, or replace what is there with --force"
    )


def _build(name: str, version: str, content: dict[str, bytes], file: Path) -> None:
    """Write an archive in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".build-") as temporary:
        stage = Path(temporary)
        extra = stage / "extra"
        named = {f"{name}_handler.py", TORCHSCRIPT_FILE, CONFIG_FILE}  # the others are extra files
        for path, data in content.items():
            target = (stage if path in named else extra) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        options: list[str | Path] = ["--serialized-file", stage / TORCHSCRIPT_FILE]
        options += ["--config-file", stage / CONFIG_FILE, "--extra-files", extra]
        archive = run_archiver(stage, name, version, stage / f"{name}_handler.py", *options)
        _rewrite(archive, stage / "reproducible.mar")
        (stage / "reproducible.mar").replace(file)


def _rewrite(source: Path, target: Path) -> None:
    """Copy an archive, sorted and without the times that the archiver recorded."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in sorted(old.namelist()):
            content = old.read(name)
            if name == _MANIFEST:
                manifest = json.loads(content) | {"createdOn": "01/01/1980 00:00:00"}
                content = json.dumps(manifest, indent=2).encode()
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            new.writestr(entry, content, zipfile.ZIP_DEFLATED)
