"""`python -m server`: serve the model store through TorchServe until a signal comes."""

import argparse
import sys
from pathlib import Path

from server.settings import ConfigurationError, load_settings
from server.store import StoreError, find_archives
from server.supervisor import Server, ServerError
from server.torchserve import TorchServeError


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 stopped, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("config.properties"),
        metavar="FILE",
        help="TorchServe's configuration file (default: %(default)s)",
    )
    parser.add_argument(
        "--model-store",
        type=Path,
        metavar="DIR",
        help="directory of the archives (default: model_store of the configuration)",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=[],
        metavar="NAME",
        help="archives to serve (default: load_models of the configuration)",
    )
    options = parser.parse_args(arguments)
    try:
        settings = load_settings(
            options.config, model_store=options.model_store, models=tuple(options.models)
        )
        archives = find_archives(settings.model_store, settings.models)
        return Server(settings, archives).run()
    except (ConfigurationError, StoreError, ServerError, TorchServeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
