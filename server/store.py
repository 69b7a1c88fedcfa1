"""The model store: finds archives, and checks that they can be served."""

import errno
import hashlib
import io
import json
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import yaml

from handler.card import CARD_FILE, CONFIG_FILE, ModelCard

# It is part of a path, and of the name of a backend in the door.
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
# Bytes of disk, besides the archives and what is in them, for sockets, changed classes and
# workers' metrics. Those are written through mappings: on a full disk a worker dies of SIGBUS, and
# nothing says why.
_ROOM = 8 << 20


class StoreError(Exception):
    """An archive is missing or cannot be read; the message names it and what to do."""


@dataclass(frozen=True)
class Archive:
    """One `.mar` file.

    Attributes:
        file: its path.
        name: the model's name, as in the URL.
        version: the model's version, as in the URL.
        card: None if this project did not build the archive.
        batch_size: the most requests that a worker takes at once.
        sha256: digest of the file.
    """

    file: Path
    name: str
    version: str
    card: ModelCard | None
    batch_size: int
    sha256: str

    @property
    def key(self) -> str:
        """Name and version, as in the URL."""
        return f"{self.name}/{self.version}"


def find_archives(store: Path, models: tuple[str, ...]) -> list[Archive]:
    """Read every archive that is to be served.

    Args:
        store: the directory.
        models: archives by name, with or without `.mar`; empty means all there are.

    Returns:
        The archives by name, the highest version of each model first: TorchServe answers requests
        that name no version with the one that it registers first.

    Raises:
        StoreError: no such directory; an archive is missing or damaged; two have the same name and
            version.
    """
    if not store.is_dir():
        raise StoreError(f"model store {store} is not a directory: run `make train` to build it")
    for name in models:
        if "/" in name:
            raise StoreError(f"{name} is a path: name archives only, and their directory as store")
    files = [store / (name if name.endswith(".mar") else f"{name}.mar") for name in models]
    files = files or sorted(store.glob("*.mar"))
    if not files:
        raise StoreError(f"model store {store} holds no archive: run `make train` to build them")
    archives = [read_archive(file) for file in files]
    seen: dict[str, Path] = {}
    for archive in archives:
        other = seen.setdefault(archive.key, archive.file)
        if other != archive.file:
            raise StoreError(
                f"{other} and {archive.file} both hold model {archive.name} {archive.version}"
            )
    archives.sort(key=lambda archive: version_order(archive.version), reverse=True)
    return sorted(archives, key=lambda archive: archive.name)


def copy_archives(archives: Sequence[Archive], directory: Path) -> list[Archive]:
    """Copy archives to a new directory.

    TorchServe is started and restarted from the copies, so that only a reload changes what is
    served.

    Raises:
        StoreError: an archive has changed since it was read, or the disk is full or nearly so.
    """
    copies = []
    try:
        directory.mkdir()
        needed = _ROOM + 3 * sum(archive.file.stat().st_size for archive in archives)
        free = shutil.disk_usage(directory).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"No space left on device: {free} bytes of {needed}")
        for archive in archives:
            file = Path(shutil.copy(archive.file, directory))
            if hashlib.sha256(file.read_bytes()).hexdigest() != archive.sha256:
                raise StoreError(f"archive {archive.file} is being written; try again")
            copies.append(replace(archive, file=file))
    except OSError as error:
        raise StoreError(f"the archives cannot be copied to {directory}: {error}") from None
    return copies


def default_versions(archives: Sequence[Archive]) -> dict[str, str]:
    """The version by model that answers requests without one: the highest."""
    defaults: dict[str, str] = {}
    for archive in archives:
        defaults.setdefault(archive.name, archive.version)
    return defaults


def version_order(version: str) -> list[tuple[int, str]]:
    """A sort key in which 10.0 comes after 9.1, and 2.0 after 2.0rc1 and beta."""
    parts = re.findall(r"\d+|[A-Za-z]+", version)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in [*parts, "0"]]


def read_archive(file: Path) -> Archive:
    """Read the manifest and card of one archive, and check that all of it can be unpacked.

    Nothing in it may lead elsewhere when TorchServe unpacks it: no absolute path, no `..`, no link.

    Raises:
        StoreError: the file is missing, damaged, or not a TorchServe archive.
    """
    if not file.is_file():
        raise StoreError(f"archive {file} is missing: run `make train` to build it")
    try:
        # Read once: one that is being written would be checked in one state, and hashed and served
        # in another.
        content = file.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in archive.infolist():
                if _leads_out(entry):
                    raise zipfile.BadZipFile(f"{entry.filename} leads out of the archive")
            damaged = archive.testzip()
            if damaged:
                raise zipfile.BadZipFile(f"{damaged} fails its checksum")
            manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]
            names = archive.namelist()
            card = archive.read(CARD_FILE) if CARD_FILE in names else None
            config_file = manifest.get("configFile", CONFIG_FILE)
            config = yaml.safe_load(archive.read(config_file)) if config_file in names else None
        name, version = manifest["modelName"], manifest.get("modelVersion", "1.0")
        digest = hashlib.sha256(content).hexdigest()
        batch_size = int((config or {}).get("batchSize", 1))
    except (
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        yaml.YAMLError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise StoreError(
            f"archive {file} is corrupt: {error}; `make train` builds it anew"
        ) from None
    for what, value in (("name", name), ("version", version)):
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise StoreError(
                f"archive {file}: model {what} {value!r} has characters other than letters, "
                f"digits, dot, hyphen and underscore"
            )
    try:
        model_card = ModelCard.from_json(card) if card is not None else None
    except (TypeError, ValueError) as error:
        raise StoreError(f"archive {file}: {error}") from None
    return Archive(file, name, version, model_card, batch_size, digest)


def _leads_out(entry: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(entry.filename)
    is_outside = path.is_absolute() or ".." in path.parts or "\\" in entry.filename
    return is_outside or stat.S_ISLNK(entry.external_attr >> 16)
