"""What a terminal of 24 lines and 80 columns shows of a training."""

from collections.abc import Sequence

from training.cache import Entry
from training.history import Epoch, History

_ROWS = 8  # with all else, 20 lines


def of_history(history: History) -> str:
    """A table of at most eight epochs, the first and the last among them."""
    epochs = history.epochs
    lines = [f"{'epoch':>7}  {'learning rate':>13}  {'loss':>8}  {'accuracy':>8}  validation loss"]
    lines[0] += "  accuracy  seconds"
    lines += [
        f"{epoch.number:7,}  {epoch.learning_rate:13.2g}  {epoch.train_loss:8.4f}  "
        f"{epoch.train_accuracy:8.2%}  {epoch.validation_loss:15.4f}  "
        f"{epoch.validation_accuracy:8.2%}  {epoch.seconds:7.1f}"
        for epoch in _spread(epochs, _ROWS)
    ]
    return "\n".join(lines)


def of_entry(entry: Entry) -> str:
    """What was trained, and how good it is."""
    card = entry.card
    validation, test = card.metrics["validation"], card.metrics["test"]
    lines = [
        f"{card.name}: {card.architecture}, {entry.parameters:,} parameters, seed {card.seed}",
        f"  {'':10}  instances  accuracy  log loss  least confidence",
        *(
            f"  {name:10}  {metrics['instances']:9,}  {metrics['accuracy']:8.2%}  "
            f"{metrics['log_loss']:8.4f}  {metrics['min_confidence']:16.4f}"
            for name, metrics in (("validation", validation), ("test", test))
        ),
    ]
    if card.calibration.get("method") == "temperature":
        lines.append(
            f"  validation calibration error {card.calibration['ece_before']:.2%}, after "
            f"calibration {card.calibration['ece_after']:.2%}"
        )
    lines.append(f"  TorchScript SHA-256 {card.torchscript_sha256[:12]}, in {entry.directory}")
    return "\n".join(lines)


def _spread(epochs: Sequence[Epoch], count: int) -> list[Epoch]:
    """As many epochs at most, evenly spread from the first to the last."""
    if len(epochs) <= count:
        return list(epochs)
    last = len(epochs) - 1
    return [epochs[round(i * last / (count - 1))] for i in range(count)]
