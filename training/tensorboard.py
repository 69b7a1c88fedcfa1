"""A training's history as event files, which TensorBoard reads."""

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from training.history import History


def write(directory: Path, history: History) -> None:
    """Write an event file with every number of a history over its epochs.

    Args:
        directory: that `tensorboard --logdir` is told, or a parent of it.
        history: of a training.
    """
    settings = "\n".join(f"| {name} | {value} |" for name, value in history.settings.items())
    with SummaryWriter(str(directory)) as writer:
        writer.add_text("settings", f"| setting | value |\n|---|---|\n{settings}")
        for epoch in history.epochs:
            scalars = {
                "learning rate": epoch.learning_rate,
                "loss/training": epoch.train_loss,
                "loss/validation": epoch.validation_loss,
                "accuracy/training": epoch.train_accuracy,
                "accuracy/validation": epoch.validation_accuracy,
                **{f"gradient norm/{layer}": v for layer, v in epoch.gradient_norms.items()},
                **{f"dead units/{layer}": v for layer, v in epoch.dead_units.items()},
            }
            for tag, value in scalars.items():
                writer.add_scalar(tag, value, epoch.number)
