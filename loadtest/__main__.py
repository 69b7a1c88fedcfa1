"""`python -m loadtest`: one run with a report, the capacity at an objective, two runs compared."""

import argparse
import contextlib
import subprocess
import sys
import time
from pathlib import Path

import requests

from loadtest import capacity, compare, report
from loadtest.servers import ROOT, Service

HOST = "http://127.0.0.1:8080"


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what of it is Locust's."""
    parser = argparse.ArgumentParser(prog="python -m loadtest", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    run = commands.add_parser(
        "run", help="a run of loadtest/locust.conf; further options are Locust's"
    )
    run.add_argument("--out", type=Path, default=Path("artifacts/loadtest", stamp))
    find = commands.add_parser("capacity", help="the highest Poisson rate that holds an objective")
    find.add_argument(
        "--objective", type=capacity.Objective.parse, required=True, metavar="p99=25ms"
    )
    find.add_argument("--scenario", choices=[*capacity.USERS], default="mnist-png")
    find.add_argument("--window", type=float, default=10, metavar="SECONDS")
    find.add_argument("--windows", type=int, default=3)
    find.add_argument("--low", type=float, default=100, metavar="RATE")
    find.add_argument("--high", type=float, default=10_000, metavar="RATE")
    find.add_argument("--precision", type=float, default=0.05)
    find.add_argument("--processes", type=int, default=1, help="of the generator")
    find.add_argument("--out", type=Path, default=Path("artifacts/capacity", stamp))
    for command in (run, find):
        command.add_argument("--host", default=HOST)
        command.add_argument("--telemetry", default="", metavar="URL")
    two = commands.add_parser("compare", help="exit 1 if the second of two runs is worse")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    two.add_argument("--tolerance", type=float, default=0.25, help="relative; default: %(default)s")
    options, others = parser.parse_known_args(arguments)
    if others and options.command != "run":
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    return options, others


def answers(host: str) -> bool:
    """Whether anything does."""
    with contextlib.suppress(requests.RequestException):
        requests.get(f"{host}/ping", timeout=5)
        return True
    return False


def server(options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
    """Start a server where nobody answers at the default address."""
    if options.host != HOST or answers(options.host):
        return
    print("no server answers: starting one for this run", flush=True)
    started = stack.enter_context(Service(ROOT / "model_store"))
    options.host = started.inference
    options.telemetry = started.telemetry


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit code is 0 for good, 1 for not, 2 for what cannot be judged."""
    options, others = parse(arguments)
    try:
        if options.command == "compare":
            differences = compare.compare(options.before, options.after, options.tolerance)
            print(compare.text(differences))
            return int(any(difference.worse for difference in differences))
        with contextlib.ExitStack() as stack:
            server(options, stack)
            if options.command == "capacity":
                return search(options)
            command = [sys.executable, "-m", "locust", "--config", "loadtest/locust.conf"]
            command += ["--host", options.host, "--telemetry", options.telemetry]
            command += ["--artifacts", str(options.out.resolve()), *others]
            return subprocess.run(command, cwd=ROOT, check=False).returncode
    except (capacity.CapacityError, compare.CompareError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def search(options: argparse.Namespace) -> int:
    """Look for the capacity, and leave a report."""
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
