"""This service beside TorchServe as it comes, or beside another version, in one run on one machine.

All servers run at once and are loaded one at a time by `wrk`, in rounds that go through every
server and number of connections, so that a machine that gets slower affects all alike. Ratios are
of the same round. A round in which others used the processors is shown and left out of the medians.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench import machine, measure, report, wrk
from bench.errors import BenchError
from bench.servers import NAMES, build
from loadtest.options import count, positive


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    add = parser.add_argument
    add("--rounds", type=count, default=5, metavar="N", help="default: %(default)s")
    add("--seconds", type=count, default=4, metavar="N", help="of a measurement")
    add("--warm-up", type=count, default=20, metavar="N", help="seconds for each server")
    add("--connections", type=count, nargs="+", default=[1, 8, 32, 128], metavar="N")
    add("--servers", nargs="+", choices=[*NAMES], default=[*NAMES], help="default: all")
    add("--beside", type=Path, metavar="DIR", help="another checkout, with archives, to compare")
    add(
        "--max-foreign",
        type=positive,
        default=0.05,
        metavar="SHARE",
        help="of the processor time, from which other processes disturb a measurement; "
        "default: %(default)s",
    )
    add("--model-store", type=Path, default=Path("model_store"), metavar="DIR")
    add("--out", type=Path, default=Path("artifacts/bench"), metavar="DIR")
    options = parser.parse_args(arguments)
    if options.beside and "service" not in options.servers:
        parser.error("--beside compares with the server `service`: add it to --servers")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark and write report.md, results.json and plot.svg; 0, or 1 if it cannot."""
    options = parse(arguments)
    about = machine.facts(" ".join(["python -m bench", *sys.argv[1:]]), options.beside)
    plan = measure.Plan(
        options.connections, options.rounds, options.seconds, options.warm_up, options.max_foreign
    )
    try:
        wrk.require()
        with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
            names = [NAMES[name] for name in options.servers]
            samples, memory = measure.run(
                build(names, options.model_store, Path(scratch), options.beside), plan
            )
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    text = report.text(samples, memory, about)
    (options.out / "report.md").write_text(text)
    document = {
        "machine": about,
        "memory_mib": [asdict(m) for m in memory],
        "samples": [asdict(s) for s in samples],
    }
    (options.out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (options.out / "plot.svg").write_text(report.plot(samples))
    print(f"\n{text}\nreport.md, results.json and plot.svg are in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
