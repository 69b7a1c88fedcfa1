"""This service beside what one might choose instead: throughput, latency, cost, and what fails.

    python -m bench.peers [--peers NAME ...] [--minutes N]

goes on with what `bench/results/peers.json` lacks, or starts anew if that is complete, and then
writes bench/RESULTS.md and the table in README.md. `--minutes` ends it after that time, to go on
later; `--again` measures all that is chosen anew.
"""

import argparse
import math
import sys
import time
from pathlib import Path

from bench import machine, measure, side_by_side, wrk
from bench.errors import BenchError
from bench.peers import report
from bench.peers.catalogue import PEERS
from loadtest.options import count, positive
from loadtest.servers import ROOT


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--peers", nargs="+", choices=[*PEERS], help="default: all that are installed")
    add("--kinds", nargs="+", choices=side_by_side.KINDS, default=side_by_side.KINDS)
    add("--rounds", type=count, default=3, metavar="N", help="default: %(default)s")
    add("--open-rounds", type=count, default=1, metavar="N", help="default: %(default)s")
    add("--seconds", type=count, default=3, metavar="N", help="of a measurement")
    add("--warm-up", type=count, default=6, metavar="N", help="seconds for each server")
    add("--connections", type=count, nargs="+", default=[1, 8, 32, 128], metavar="N")
    add("--max-foreign", type=positive, default=0.05, metavar="SHARE", help="as `python -m bench`")
    add("--minutes", type=positive, default=math.inf, metavar="N", help="begin no part after it")
    add("--again", action="store_true", help="forget what it measured before")
    add("--report", action="store_true", help="measure nothing, write the report")
    add("--model-store", type=Path, default=ROOT / "model_store", metavar="DIR")
    add("--out", type=Path, default=ROOT / "bench", metavar="DIR")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure what is left and write the report; 0, or 1 if it cannot."""
    options = parse(arguments)
    until = time.monotonic() + 60 * options.minutes
    file = options.out / "results" / "peers.json"
    results = side_by_side.Results(file)
    peers = options.peers or [name for name, peer in PEERS.items() if peer.is_installed]
    plan = measure.Plan(
        options.connections,
        options.rounds,
        options.seconds,
        options.warm_up,
        options.max_foreign,
        # What a peer fails is a result.
        may_fail=[peer.title for peer in PEERS.values()],
    )
    every = side_by_side.parts(peers, options.rounds, options.open_rounds)
    todo = [part for part in every if part.kind in options.kinds]
    if not options.report:
        if options.again or all(results.has(part) for part in todo):
            results.forget(todo)
        try:
            wrk.require()
            results.begin(machine.facts(" ".join(["python -m bench.peers", *sys.argv[1:]])))
            is_over = side_by_side.run(results, todo, plan, options.model_store, until)
        except BenchError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print("nothing is left" if is_over else "parts are left: run it again to go on")
    report.write(results.document, options.out)
    if options.out == ROOT / "bench":
        report.write_readme(results.document, ROOT / "README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
