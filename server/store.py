"""The model store: which archives are there, and whether they can be served at all."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from handler.card import CARD_FILE, ModelCard


class StoreError(Exception):
    """An archive is missing or cannot be read; the message names it and what to do."""


@dataclass(frozen=True)
class Archive:
    """One `.mar` file.

    Attributes:
        file: where it lies.
        name: the model's, as in the URL.
        version: the model's, as in the URL.
        card: None where the archive was not built by this project.
    """

    file: Path
    name: str
    version: str
    card: ModelCard | None


def find_archives(store: Path, models: tuple[str, ...]) -> list[Archive]:
    """Read every archive that is to be served.

    Args:
        store: the directory.
        models: archives by name, with or without `.mar`; empty means all there are.

    Raises:
        StoreError: no such directory, archive missing, damaged, or two of one name and version.
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
    seen: dict[tuple[str, str], Path] = {}
    for archive in archives:
        other = seen.setdefault((archive.name, archive.version), archive.file)
        if other != archive.file:
            raise StoreError(
                f"{other} and {archive.file} both hold model {archive.name} {archive.version}"
            )
    return archives


def read_archive(file: Path) -> Archive:
    """Read the manifest and card of one archive, and check that all of it can be unpacked.

    Raises:
        StoreError: the file is missing or damaged, or no TorchServe archive.
    """
    if not file.is_file():
        raise StoreError(f"archive {file} is missing: run `make train` to build it")
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
            if damaged:
                raise zipfile.BadZipFile(f"{damaged} fails its checksum")
            model = json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]
            names = archive.namelist()
            card = ModelCard.from_json(archive.read(CARD_FILE)) if CARD_FILE in names else None
        return Archive(file, model["modelName"], model.get("modelVersion", "1.0"), card)
    except (OSError, EOFError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"archive {file} is corrupt: {error}; `make train` builds it anew"
        ) from None
