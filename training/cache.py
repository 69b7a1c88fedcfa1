"""Trained models, kept so that packing needs no training.

An entry is a directory `{model}/{key}` with the network's weights, the TorchScript, what the model
card says of them, and the SHA-256 of each file. The key is a digest of all that the weights depend
on: the code that trains this model and torch's version (`training.sources.training_sha256`), the
data, the settings and the seed.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from handler.card import TORCHSCRIPT_FILE, ModelCard
from training.errors import TrainingError
from training.sources import training_sha256

_WEIGHTS_FILE = "weights.pt"
_ENTRY_FILE = "entry.json"
_SUMS_FILE = "SHA256SUMS"  # as `sha256sum --check` reads it
_PARTIAL = ".partial-"


class CacheError(TrainingError):
    """An entry is missing, damaged or not unique; the message says which and what to do."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A trained model.

    Attributes:
        directory: where it is kept.
        card: the model card; its version is empty until the model is packed.
        parameters: how many numbers the network has learned.
        max_batch_size: requests that a worker takes at once.
        max_batch_delay: milliseconds that a request waits for others.
        torchscript: content of the TorchScript file.
    """

    directory: Path
    card: ModelCard
    parameters: int
    max_batch_size: int
    max_batch_delay: int
    torchscript: bytes

    @property
    def is_current(self) -> bool:
        """Whether the model was trained by the training code and torch that are here now."""
        return self.card.source_sha256 == training_sha256(self.card.name)


def directory(name: str) -> Path:
    """Where the entries of a model are: under `TRAINING_CACHE`, by default `.cache/training`."""
    return Path(os.environ.get("TRAINING_CACHE") or ".cache/training") / name


def checkpoint_file(name: str, key: str) -> Path:
    """Where the state of a model's training in progress is, beside the entries."""
    return directory("checkpoints") / f"{name}-{key}.pt"


def check_writable(name: str) -> None:
    """Find out before minutes of training, not after.

    Raises:
        OSError: the cache cannot be written to.
    """
    directory(name).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory(name), prefix=_PARTIAL):
        pass


def put(entry: Entry, weights: bytes) -> None:
    """Write an entry in one step; a damaged one in its place is replaced.

    Args:
        entry: its directory is one of `directory(entry.card.name)`.
        weights: state dictionary of the network, as `torch.save` writes it.
    """
    values = {
        "card": asdict(entry.card),
        "parameters": entry.parameters,
        "max_batch_size": entry.max_batch_size,
        "max_batch_delay": entry.max_batch_delay,
    }
    content = {
        TORCHSCRIPT_FILE: entry.torchscript,
        _WEIGHTS_FILE: weights,
        _ENTRY_FILE: json.dumps(values, indent=1).encode(),
    }
    target = entry.directory
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=_PARTIAL) as temporary:
        stage = Path(temporary) / target.name
        stage.mkdir()
        for name, data in content.items():
            (stage / name).write_bytes(data)
        (stage / _SUMS_FILE).write_text(_sums(content))
        shutil.rmtree(target, ignore_errors=True)
        stage.rename(target)


def load(path: Path) -> Entry:
    """Read an entry and verify the SHA-256 of its files.

    Raises:
        CacheError: a file is missing, damaged, or not what this version of the project writes.
    """
    try:
        names = (TORCHSCRIPT_FILE, _WEIGHTS_FILE, _ENTRY_FILE)
        content = {name: (path / name).read_bytes() for name in names}
        if (path / _SUMS_FILE).read_text() != _sums(content):
            raise ValueError(f"its files do not match {_SUMS_FILE}")
        values = json.loads(content[_ENTRY_FILE])
        card = _card(values.pop("card"))
        return Entry(directory=path, card=card, torchscript=content[TORCHSCRIPT_FILE], **values)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CacheError(f"cache entry {path} is corrupt: {error}") from None


def entries(name: str) -> list[Entry]:
    """All entries of a model, the one trained last first; a warning names each corrupt one."""
    paths = [path for path in directory(name).glob("*") if not path.name.startswith(_PARTIAL)]
    found = []
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            found.append(load(path))
        except CacheError as error:
            print(f"warning: {error}; it is ignored", file=sys.stderr)
    return found


def newest(name: str) -> Entry:
    """The entry that the training code of now trained last.

    Raises:
        CacheError: there is none.
    """
    for entry in entries(name):
        if entry.is_current:
            return entry
    raise CacheError(
        f"the training cache has no {name} of the present training code: "
        f"run `python -m training train {name}`"
    )


def find(reference: str) -> Entry:
    """The entry that `NAME` or `NAME@DIGEST` refers to.

    Args:
        reference: a model, for its newest entry, or a model and the first digits of the SHA-256 of
            a TorchScript, for the newest entry with that one.

    Raises:
        CacheError: there is none, or the digits begin several digests.
    """
    name, at, digits = reference.partition("@")
    if not at:
        return newest(name)
    found = [e for e in entries(name) if e.card.torchscript_sha256.startswith(digits)]
    if not found:
        raise CacheError(f"the training cache has no {name} with a TorchScript SHA-256 {digits}...")
    if len({entry.card.torchscript_sha256 for entry in found}) > 1:
        raise CacheError(f"{reference}: several TorchScripts begin so; give more digits")
    return found[0]


def _card(values: dict[str, Any]) -> ModelCard:
    """A card of whatever release wrote it: a new schema of archives is no reason to train again.

    Raises:
        TypeError: a field is missing.
    """
    known: dict[str, Any] = {}
    for field in fields(ModelCard):
        if field.name in values:
            value = values[field.name]
            known[field.name] = tuple(value) if isinstance(value, list) else value  # JSON has lists
    return ModelCard(**known)


def _sums(content: dict[str, bytes]) -> str:
    return "".join(
        f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in content.items()
    )
