"""What the pipeline tells whoever runs it."""

from pathlib import Path

from tqdm import tqdm

from handler.card import ModelCard


def line(text: str) -> None:
    """Print a line without breaking a progress bar."""
    tqdm.write(text)


def summary(card: ModelCard, file: Path, *, parameters: int) -> None:
    """Say what was archived and how good it is."""
    validation, test = card.metrics["validation"], card.metrics["test"]
    line(
        f"{card.name} {card.version}: {card.architecture}, {parameters:,} parameters, "
        f"seed {card.seed}\n"
        f"  validation accuracy {validation['accuracy']:.4f} of {validation['instances']:,}, "
        f"test accuracy {test['accuracy']:.4f} of {test['instances']:,}, "
        f"least confidence {validation['min_confidence']:.4f}\n"
        f"  {file}, TorchScript SHA-256 {card.torchscript_sha256[:12]}"
    )
