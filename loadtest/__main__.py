"""`python -m loadtest`: run a load test, find the capacity, or compare two runs."""

import argparse
import contextlib
import subprocess
import sys
import time
from pathlib import Path

import requests

from loadtest import capacity, compare, generator, report
from loadtest.options import count, positive
from loadtest.servers import ROOT, Service

HOST = "http://127.0.0.1:8080"


def objective(text: str) -> capacity.Objective:
    """Read an option's value, in the form of `capacity.Objective.parse`."""
    try:
        return capacity.Objective.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line; the arguments that are Locust's come second."""
    parser = argparse.ArgumentParser(prog="python -m loadtest", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    run = commands.add_parser("run", help="run loadtest/locust.conf; further options are Locust's")
    run.add_argument("--out", type=Path, default=Path("artifacts/loadtest", stamp))
    find = commands.add_parser(
        "capacity", help="find the highest Poisson rate that holds an objective"
    )
    find.add_argument("--objective", type=objective, required=True, metavar="p99=25ms")
    find.add_argument("--scenario", choices=[*capacity.USERS], default="mnist-png")
    find.add_argument("--window", type=positive, default=10, metavar="SECONDS")
    find.add_argument("--windows", type=count, default=3)
    find.add_argument("--low", type=positive, default=100, metavar="RATE")
    find.add_argument("--high", type=positive, default=10_000, metavar="RATE")
    find.add_argument("--precision", type=positive, default=0.05)
    find.add_argument("--processes", type=count, default=1, help="of the generator")
    find.add_argument("--out", type=Path, default=Path("artifacts/capacity", stamp))
    for command in (run, find):
        command.add_argument("--host", default=HOST)
        command.add_argument(
            "--telemetry",
            default="",
            metavar="URL",
            help="default: TELEMETRY_ADDRESS, else port 8083 of the host",
        )
    two = commands.add_parser("compare", help="exit with 1 if the second of two runs is worse")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    two.add_argument(
        "--tolerance",
        type=float,
        default=0.25,
        help="worse is a figure whose whole 95 %% interval of after ÷ before lies above 1 + this; "
        "default: %(default)s",
    )
    options, others = parser.parse_known_args(arguments)
    if others and options.command != "run":
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    return options, others


def is_reachable(host: str) -> bool:
    """Whether an HTTP server responds."""
    with contextlib.suppress(requests.RequestException):
        requests.get(f"{host}/ping", timeout=5)
        return True
    return False


def ensure_server(options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
    """Start a server if the host is the default and no server responds there."""
    if options.host != HOST or is_reachable(options.host):
        return
    print(f"no server responds at {HOST}: starting one for this run", flush=True)
    started = stack.enter_context(Service(ROOT / "model_store"))
    options.host = started.inference
    options.telemetry = started.telemetry


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit code is 0 for passed, 1 for failed, 2 for what cannot be judged."""
    options, others = parse(arguments)
    try:
        if options.command == "compare":
            differences = compare.compare(options.before, options.after, options.tolerance)
            print(compare.text(differences))
            return int(any(difference.worse for difference in differences))
        with contextlib.ExitStack() as stack:
            ensure_server(options, stack)
            if options.command == "capacity":
                return search(options)
            out = str(options.out.resolve())
            command = generator.command(options.host, options.telemetry, out)
            return subprocess.run([*command, *others], cwd=ROOT, check=False).returncode
    except (capacity.CapacityError, compare.CompareError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def search(options: argparse.Namespace) -> int:
    """Find the capacity, and write a report."""
    wanted = capacity.Search(
        options.objective,
        options.scenario,
        options.window,
        options.windows,
        options.low,
        options.high,
        options.precision,
        options.processes,
    )

    def attempt(rate: float) -> capacity.Probe:
        print(f"{rate:8.0f} requests a second: ", end="", flush=True)
        result = capacity.probe(wanted, rate, options.host, options.telemetry)
        windows = ", ".join(f"{value:.1f}" for value in result.windows_ms)
        print(
            f"p{wanted.objective.percent:g} {windows} ms in its windows, "
            f"{'held' if result.held else result.reason}",
            flush=True,
        )
        return result

    probes = capacity.find(wanted, attempt)
    capacity.write(wanted, probes, options.out)
    print(f"\n{report.table(*capacity.rows_of(probes))}\n\n{capacity.summary(wanted, probes)}")
    print(f"capacity.html and capacity.json are in {options.out}")
    return 0 if capacity.best(probes) else 1


if __name__ == "__main__":
    sys.exit(main())
