"""`python -m training`: train models, pack them as archives, list and compare them.

`train` leaves a model in the cache; what it trained before with the same code, data, settings and
seed is not trained again. `pack` makes an archive of it with the handler code of now.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training import cache
from training.archive import DEFAULT_VERSION, archive_file, archives_of, pack, pack_stale
from training.errors import TrainingError
from training.listing import table
from training.registry import MODELS
from training.settings import FLAG, KINDS, SettingError, meanings, parsed

# Modules that import torch, which takes a second, are imported by the commands that need it: no
# others are on the way of `make serve`.

MODEL_STORE = Path("model_store")
INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0 done, 1 failed or under the gate, 2 wrong usage, 130 interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except (TrainingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing half-written is left", file=sys.stderr)
        return INTERRUPTED
    return code


def _train(options: argparse.Namespace) -> int:
    names = []
    for name in _names(options.model):
        archives = archives_of(name, options.out) if options.missing else []
        if archives:
            print(f"{archives[0].file} is there")
        else:
            names.append(name)
    if names:
        from training.distributed import joined
        from training.runs import UsageError, make_runs, to_toml
        from training.summary import of_entry
        from training.train import ARTIFACTS, train

        try:
            runs = make_runs(names, options)
        except UsageError as error:
            options.fail(str(error))
        if options.show_settings:
            print(*map(to_toml, runs), sep="\n")
            return 0
        with joined(runs[0].device) as group:
            for run in runs:
                entry = train(
                    run,
                    resume=options.resume,
                    group=group,
                    artifacts=ARTIFACTS,
                    tensorboard=options.tensorboard,
                )
                if entry:
                    print(of_entry(entry))
                    if run.architecture == run.recipe.quick:
                        print(
                            f"  `make train ARGS=--force` trains {run.recipe.default} instead, "
                            "which takes minutes and is more accurate"
                        )
    return 0


def _pack(options: argparse.Namespace) -> int:
    """Pack each model, whether or not another fails."""
    if options.stale and (options.version or options.force or "@" in options.model):
        options.fail(
            "--stale keeps each archive's version and model: no --version, --force, @DIGEST"
        )
    version = options.version or DEFAULT_VERSION
    failed = False
    for reference in _names(options.model):
        try:
            if options.stale:
                for line in pack_stale(reference, options.out):
                    print(line)
            else:
                entry = cache.find(reference)
                file = archive_file(options.out, entry.card.name, version)
                print(pack(entry, version, file, force=options.force))
        except TrainingError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    return int(failed)


def _list(options: argparse.Namespace) -> int:
    print(table(options.out))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from training.compare import candidate, compare, page, text
    from training.data import MNIST_DIR

    first, second = map(candidate, options.model)
    comparison = compare(first, second, options.data_dir or MNIST_DIR)
    print(text(comparison))
    if options.out:
        options.out.write_text(page(comparison))
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from training.compare import candidate
    from training.data import MNIST_DIR
    from training.evaluate import figures, text

    model = candidate(options.model)
    beside = candidate(options.beside) if options.beside else None
    measured = figures(model, options.data_dir or MNIST_DIR, beside=beside)
    print(text(measured))
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n")
    return 0


def _names(model: str) -> list[str]:
    return list(MODELS) if model == "all" else [model]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands.add_parser("train", help="train models into the cache"))
    _add_pack(commands.add_parser("pack", help="make archives of trained models"))
    _add_list(commands.add_parser("list", help="list archives and trained models"))
    _add_compare(commands.add_parser("compare", help="compare two trained models"))
    _add_evaluate(commands.add_parser("evaluate", help="measure every figure of a trained model"))
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_train, fail=parser.error)
    add = parser.add_argument
    add("model", nargs="?", choices=[*MODELS, "all"], default="all", help="default: all")
    add("--missing", action="store_true", help="only models of which --out has no archive")
    add("--quick", action="store_true", help="the model's quick network, if it has one")
    add("--out", type=Path, default=MODEL_STORE, metavar="DIR", help="default: %(default)s")
    add("--arch", metavar="NAME", help="the network (default: the first in the model's recipe)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")
    add("--data-dir", type=Path, metavar="DIR", help="cache of the data (default: .cache/mnist)")
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML with a table for each model, such as [mnist], and in it arch and the settings "
        "below with _ for -",
    )
    add(
        "--resume",
        action="store_true",
        help="continue an interrupted training of the same settings; the weights are the same",
    )
    add(
        "--tensorboard", action="store_true", help="also event files for TensorBoard, by the report"
    )
    add("--show-settings", action="store_true", help="print the settings as TOML, and do not train")
    settings = parser.add_argument_group(
        "settings", "What is not given is as in the file of --config, or else as in the recipe."
    )
    for name, meaning in meanings().items():
        option = f"--{name.replace('_', '-')}"
        kind = KINDS[name]
        if kind is FLAG:
            settings.add_argument(option, action=argparse.BooleanOptionalAction, help=meaning)
        else:
            settings.add_argument(
                option,
                type=_setting(name),
                metavar=kind.metavar,
                help=f"{meaning} Takes {kind.expected}.",
            )


def _add_pack(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_pack, fail=parser.error)
    parser.description = (
        "Packs what the present training code trained last, or the TorchScript whose SHA-256 "
        "begins with DIGEST. Only the same model is replaced: the same name, version and "
        "TorchScript, with the handler code of now."
    )
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        type=_reference,
        default="all",
        metavar="NAME[@DIGEST]",
        help=f"one of {', '.join(MODELS)}, or all (default: all)",
    )
    add("--out", type=Path, default=MODEL_STORE, metavar="DIR", help="default: %(default)s")
    add(
        "--version",
        type=_version,
        metavar="V",
        help=f"default: {DEFAULT_VERSION}, which is NAME.mar; another is NAME-V.mar",
    )
    add("--force", action="store_true", help="replace another archive of the name and version")
    add(
        "--stale",
        action="store_true",
        help="only models of which --out has no archive, and archives that the present code would "
        "pack differently; says why",
    )


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_list)
    parser.add_argument(
        "--out", type=Path, default=MODEL_STORE, metavar="DIR", help="default: %(default)s"
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_compare)
    parser.description = "Compares on the validation split: metrics, and where the answers differ."
    add = parser.add_argument
    add("model", nargs=2, metavar="NAME[@DIGEST]|FILE.mar", help="trained model or archive")
    add("--out", type=Path, metavar="FILE", help="also an HTML page, with every image in question")
    add("--data-dir", type=Path, metavar="DIR", help="cache of the data (default: .cache/mnist)")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_evaluate)
    parser.description = (
        "Measures what the model answers on the test split, on corrupted, photographed and foreign "
        "digits and on pictures that are no digit, and what it costs. Choose nothing by it."
    )
    add = parser.add_argument
    add("model", metavar="NAME[@DIGEST]|FILE.mar", help="trained model or archive")
    add("--json", type=Path, metavar="FILE", help="also write the figures there")
    add("--beside", metavar="NAME[@DIGEST]|FILE.mar", help="time the forward in turns with this")
    add("--data-dir", type=Path, metavar="DIR", help="cache of the data (default: .cache/mnist)")


def _setting(name: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return parsed(name, text)
        except SettingError as error:
            raise argparse.ArgumentTypeError(error.reason) from None

    return parse


def _version(text: str) -> str:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)*", text):
        raise argparse.ArgumentTypeError(f"expected numbers and dots, such as 2.0, got {text}")
    return text


def _reference(text: str) -> str:
    if not (text == "all" or text.partition("@")[0] in MODELS):
        raise argparse.ArgumentTypeError(f"expected all or one of {', '.join(MODELS)}, got {text}")
    return text


if __name__ == "__main__":
    sys.exit(main())
