"""`model.json`: what an archive says of the model in it. Written by training, read by serving."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CARD_FILE = "model.json"
TORCHSCRIPT_FILE = "model.pt"
CONFIG_FILE = "model-config.yaml"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A model's identity and origin.

    Attributes:
        name: as in the URL, `/predictions/{name}`.
        version: as in the URL, `/predictions/{name}/{version}`.
        architecture: what the network is, such as `cnn`.
        classes: a name for each label, label 0 first.
        input_shape: of one instance, without the batch dimension.
        input_bounds: smallest and largest number accepted, or None for every finite one.
        normalisation: in words, what the TorchScript does to an instance before the network.
        data_sha256: digest of the training data.
        source_sha256: digest of the code and pins that the archive was made with.
        seed: the one that the weights came from.
        libraries: version by distribution name.
        git_commit: with `-dirty` where the tree had changes; empty outside a repository.
        metrics: by split, `validation` and `test`.
        torchscript_sha256: of `model.pt`; a worker refuses another.
        example: a request body that the model answers, for warming up end to end.
        example_label: the label of its one instance.
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

    def to_json(self) -> str:
        """Serialise; the same card gives the same text."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "ModelCard":
        """Read what `to_json` wrote.

        Raises:
            ValueError: not JSON.
            TypeError: a field is missing or unknown.
        """
        fields = json.loads(text)
        for name in ("classes", "input_shape", "input_bounds"):
            if fields.get(name) is not None:
                fields[name] = tuple(fields[name])
        return cls(**fields)

    @classmethod
    def read(cls, directory: Path) -> "ModelCard":
        """Read the card of an unpacked archive."""
        return cls.from_json((directory / CARD_FILE).read_bytes())
