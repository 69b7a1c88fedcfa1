"""`python -m training`: train models and pack them as archives."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from server.store import StoreError
from training import report
from training.archive import ArchiveError, is_current
from training.data import MNIST_DIR, DataError
from training.export import ExportError
from training.loop import OPTIMIZERS
from training.pipeline import GateError, Run, make
from training.recipe import NetworkOptions
from training.registry import RECIPES

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 archived, 1 failed or under the gate, 2 wrong usage, 130 interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    runs = _runs(parser, options)
    try:
        for run in runs:
            file = run.store / f"{run.recipe.name}.mar"
            if options.missing and file.exists():
                report.line(f"{file} is there already{_age(file, run.recipe.name)}")
            else:
                make(run)
    except (ArchiveError, DataError, ExportError, GateError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the model in training was not archived", file=sys.stderr)
        return INTERRUPTED
    return 0


def _age(file: Path, name: str) -> str:
    """A remark on an archive that the code here would build differently."""
    try:
        if is_current(file, name):
            return ""
    except StoreError:
        return ""  # which the server will complain of
    return ", made with other code: `make train` builds it anew"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    add = parser.add_argument
    architectures = sorted({name for recipe in RECIPES.values() for name in recipe.architectures})
    add("model", choices=[*RECIPES, "all"], help="what to train")
    add("--missing", action="store_true", help="skip models whose archive is there")
    add("--arch", choices=architectures, help="network (default: the model's first)")
    add("--epochs", type=_count, metavar="N", help="passes over the data (default: the model's)")
    add("--seed", type=int, default=0, metavar="N", help="of all randomness (default: 0)")
    add("--optimizer", choices=OPTIMIZERS, help="default: the model's")
    add("--learning-rate", type=float, metavar="R", help="default: the optimizer's")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")
    add("--data-dir", type=Path, default=MNIST_DIR, metavar="DIR", help="default: %(default)s")
    add("--out", type=Path, default=Path("model_store"), metavar="DIR", help="default: %(default)s")
    default = NetworkOptions()
    add("--hidden", type=_widths, default=default.hidden, metavar="N,N", help="mlp: layer widths")
    add("--dropout", type=float, default=default.dropout, metavar="P", help="mlp: default 0")
    add("--batch-norm", action="store_true", help="mlp: normalise each hidden layer")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def _widths(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


def _runs(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Run]:
    """A run for each model asked for; ends the program where the options do not fit it."""
    if not 0 <= options.dropout < 1:
        parser.error(f"--dropout: expected 0 to under 1, got {options.dropout}")
    if options.learning_rate is not None and not options.learning_rate > 0:
        parser.error(f"--learning-rate: expected over 0, got {options.learning_rate}")
    if options.seed < 0:
        parser.error(f"--seed: expected 0 or more, got {options.seed}")
    has_cuda = torch.cuda.is_available()
    if options.device == "cuda" and not has_cuda:
        parser.error("--device cuda: torch finds no CUDA device")
    device = torch.device("cuda" if has_cuda and options.device != "cpu" else "cpu")
    runs = []
    for name in RECIPES if options.model == "all" else [options.model]:
        recipe = RECIPES[name]
        architecture = options.arch or next(iter(recipe.architectures))
        if architecture not in recipe.architectures:
            known = ", ".join(recipe.architectures)
            parser.error(f"--arch {architecture}: model {name} has {known}")
        optimizer = options.optimizer or recipe.optimizer
        default_rate = (
            recipe.learning_rate
            if optimizer == recipe.optimizer
            else OPTIMIZERS[optimizer].learning_rate
        )
        recipe = replace(
            recipe,
            epochs=options.epochs or recipe.epochs,
            optimizer=optimizer,
            learning_rate=options.learning_rate or default_rate,
        )
        runs.append(
            Run(
                recipe=recipe,
                architecture=architecture,
                network=NetworkOptions(options.hidden, options.dropout, options.batch_norm),
                seed=options.seed,
                device=device,
                data_directory=options.data_dir,
                store=options.out,
            )
        )
    return runs


if __name__ == "__main__":
    sys.exit(main())
