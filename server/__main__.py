"""`python -m server`: serve the model store until a signal comes, or reload a running server."""

import argparse
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

from server.door import DoorError
from server.settings import ConfigurationError, load_settings
from server.store import StoreError, find_archives
from server.supervisor import ServerError, Supervisor
from server.torchserve import TorchServeError


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 stopped or reloaded, 1 failed, 2 wrong usage."""
    options = _parse(arguments)
    try:
        settings = load_settings(
            options.config, model_store=options.model_store, models=tuple(options.models)
        )
        if options.command == "reload":
            return reload(settings.telemetry.url, settings.startup_timeout)
        archives = find_archives(settings.model_store, settings.models)
        return Supervisor(settings, archives).run()
    except (ConfigurationError, StoreError, ServerError, TorchServeError, DoorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    parser.add_argument(
        "command",
        nargs="?",
        choices=("serve", "reload"),
        default="serve",
        help="reload: a server that runs at the telemetry address serves the store as it is now",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("config.properties"),
        metavar="FILE",
        help="the configuration file (default: %(default)s)",
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
    return parser.parse_args(arguments)


def reload(telemetry: str, startup_timeout: float) -> int:
    """Have the server at a telemetry URL serve its store as it is now, and print the outcome."""
    request = urllib.request.Request(f"{telemetry}/reload", method="POST")  # noqa: S310 (http)
    try:
        with urllib.request.urlopen(request, timeout=startup_timeout + 60) as answer:  # noqa: S310
            report = json.load(answer)
    except urllib.error.HTTPError as error:
        print(f"error: {error.read().decode(errors='replace').strip()}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: no server answers at {telemetry}: {error}", file=sys.stderr)
        return 1
    print(f"reloaded: {', '.join(report['models'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
