"""The model card, `model.json`: what an archive says about its model.

Training writes it, serving reads it, and the two may be of different releases.
"""

import json
import zipfile
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

CARD_FILE = "model.json"
TORCHSCRIPT_FILE = "model.pt"
CONFIG_FILE = "model-config.yaml"
# Of the cards that this release writes, and the only one that it reads. It rises when a field is
# removed, changes its meaning or is added without a default: then a reader of the other release
# would be wrong. A field with a default does not raise it, because readers ignore unknown fields.
SCHEMA = 1
_TUPLES = ("classes", "input_shape", "input_bounds", "usage")
_PACK_AGAIN = "pack the archive again with this release (`python -m training pack`)"


class CardError(ValueError):
    """A model card cannot be read; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A model's identity and origin.

    Attributes:
        name: in the URL, `/predictions/{name}`.
        version: in the URL, `/predictions/{name}/{version}`.
        architecture: of the network, such as `cnn`.
        classes: name of each label, label 0 first.
        input_shape: of one instance, without the batch dimension.
        input_bounds: smallest and largest number accepted; None accepts float32's range.
        normalisation: what the TorchScript does to an instance before the network, in words.
        data_sha256: digest of the training data.
        source_sha256: digest of the code and pins that the archive was made with.
        seed: that the weights were trained from.
        libraries: version by distribution name.
        git_commit: ends in `-dirty` if the tree had changes; empty outside a repository.
        metrics: by split, `validation` and `test`.
        torchscript_sha256: of `model.pt`; a worker refuses to load another.
        example: a request body that the model answers, for warming up end to end.
        example_label: label of its one instance.
        settings: of the training, by name, those of the network among them.
        calibration: method, the temperature in the TorchScript, and the expected calibration error
            on the validation split before and after.
        usage: commands that show a request, with URL for that of the model.
    """

    name: str
    version: str
    architecture: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    input_bounds: tuple[float, float] | None
    normalisation: str
    data_sha256: str
    source_sha256: str
    seed: int
    libraries: dict[str, str]
    git_commit: str
    metrics: dict[str, dict[str, Any]]
    torchscript_sha256: str
    example: dict[str, Any]
    example_label: int
    settings: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    usage: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Serialise; the same card gives the same text."""
        return json.dumps({"schema": SCHEMA} | asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "ModelCard":
        """Read what `to_json` wrote, ignoring unknown fields.

        Raises:
            CardError: not a JSON object, of another schema, or with a field missing.
        """
        try:
            card = json.loads(text)
        except ValueError as error:
            raise CardError(f"{CARD_FILE} is not valid JSON: {error}; {_PACK_AGAIN}") from None
        if not isinstance(card, dict):
            raise CardError(f"{CARD_FILE} is not a JSON object; {_PACK_AGAIN}")
        _check_schema(card.get("schema"))
        known = fields(cls)
        required = {f.name for f in known if f.default_factory is MISSING and f.default is MISSING}
        if missing := sorted(required - card.keys()):
            raise CardError(f"{CARD_FILE} lacks {', '.join(missing)}; {_PACK_AGAIN}")
        values = {f.name: card[f.name] for f in known if f.name in card}
        for name in _TUPLES:
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        return cls(**values)

    @classmethod
    def read(cls, directory: Path) -> "ModelCard":
        """Read the card of an unpacked archive.

        Raises:
            CardError: it cannot be read.
        """
        return cls.from_json((directory / CARD_FILE).read_bytes())


def read_card(archive: Path) -> ModelCard | None:
    """Read the card of a `.mar` file without unpacking it.

    Returns:
        None if the archive has no card, as one that was not built by this project.

    Raises:
        CardError: the card cannot be read.
        OSError: the file is missing or unreadable.
        zipfile.BadZipFile: it is not a zip file, or is damaged.
    """
    with zipfile.ZipFile(archive) as file:
        if CARD_FILE not in file.namelist():
            return None
        return ModelCard.from_json(file.read(CARD_FILE))


def _check_schema(schema: Any) -> None:
    if type(schema) is int and schema == SCHEMA:
        return
    readable = f"this release reads schema {SCHEMA} only"
    if schema is None:
        raise CardError(
            f"{CARD_FILE} has no schema number, so the archive is too old: {readable}; "
            f"{_PACK_AGAIN}"
        )
    if type(schema) is not int:
        raise CardError(f"{CARD_FILE} has schema {schema!r:.40}, not a number; {_PACK_AGAIN}")
    age = "too new" if schema > SCHEMA else "too old"
    raise CardError(
        f"{CARD_FILE} has schema {schema}, so the archive is {age}: {readable}; {_PACK_AGAIN}, or "
        f"serve it with the release that packed it"
    )
