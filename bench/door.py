"""What each line of the front door's configuration costs.

    python -m bench.door [--rounds N] [--seconds N] [--connections N ...]

HAProxy runs with the configuration that server/door.py renders, and beside it once for each variant
of that, all in front of another HAProxy that answers at once, so that nothing but the door is in
the figure: the processor time, user and system, that it needs for a request. Processes that use the
machine meanwhile change that far less than the rate. `wrk` loads one door at a time, and before
each variant the configuration as it is, from which the difference is taken. The first variant is
the same configuration again: its differences are noise.
"""

import argparse
import contextlib
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from bench import machine, wrk
from bench.errors import BenchError
from bench.report import spread, table
from loadtest.options import count
from loadtest.servers import ROOT, wait_until
from server.door import DoorError, Route, find_haproxy, render
from server.settings import load_settings

# A pattern and what replaces it wherever it matches; `^` and `$` are the ends of a line.
Edit = tuple[str, str]
# Of config.properties, with the two workers of mnist.
_ROUTES = (Route("mnist", "1.0", ("1.0",), 256, 4), Route("xor", "1.0", ("1.0",), 128, 2))
# Answers as many bytes and headers as TorchServe, once it has the body.
_BACKEND = f"""\
global
    nbthread 1
defaults
    mode http
    timeout connect 1s
    timeout client 100s
    timeout server 100s
frontend torchserve
    bind unix@{{}}
    http-request wait-for-body time 5s at-least 16k
    http-request return status 200 content-type application/json string "{"x" * 300}" \
hdr X-Request-Id 7 hdr Pragma no-cache hdr Expires "Thu, 01 Jan 1970 00:00:00 UTC" \
hdr Cache-Control "no-cache; no-store, must-revalidate, private"
"""


def _without(*patterns: str) -> tuple[Edit, ...]:
    return tuple((rf"^.*(?:{pattern}).*\n", "") for pattern in patterns)


def _with(section: str, line: str) -> Edit:
    return rf"^{section}$", rf"{section}\n    {line}"


# Each answer closes its connection, as it does while the door drains.
_CLOSING = (r"(set-header Connection close) if .*", r"\1")
VARIANTS: Mapping[str, Sequence[Edit]] = {
    "the same again": (),
    "no rules": (
        *_without(
            "http-request (?!use-service)",
            "http-response",
            "http-after-response",
            " acl ",
            "use_backend",
            "use-server",
            "server large",
        ),
        ("default_backend control", "default_backend model:mnist"),
    ),
    "no ids of requests": _without("X-Request-Id", r"uuid\(\)"),
    "no path for logs, no errors for V2": _without(r"set-var\(txn.path\)", r"set-var\(txn.error\)"),
    "no rules for answers": _without("http-response return", "set-status 503", "Connection close"),
    "no V1 and V2": _without("is_v1", "is_v2", "X-Protocol"),
    "no 404, 405 and 413": _without("http-request return status 4(?:04|05|13)"),
    "no wait-for-body": _without("wait-for-body"),
    "no del-header": _without("del-header"),
    "no X-Request-Start": _without("X-Request-Start"),
    "one server for all bodies": _without("use-server", "txn.large", "server large"),
    "no retry-on": _without("retry-on"),
    "no abortonclose": _without("abortonclose"),
    "no idle-close-on-response": _without("idle-close-on-response"),
    "http-reuse never": [("http-reuse always", "http-reuse never")],
    "nbthread 2": [("nbthread 1", "nbthread 2")],
    "tune.bufsize 8192": [_with("global", "tune.bufsize 8192"), ("at-least 16k", "at-least 8k")],
    "tune.bufsize 32768": [_with("global", "tune.bufsize 32768")],
    "tune.rcvbuf and sndbuf.client 65536": [
        _with("global", "tune.rcvbuf.client 65536"),
        _with("global", "tune.sndbuf.client 65536"),
    ],
    "option http-no-delay": [_with("defaults", "option http-no-delay")],
    "option splice-auto": [_with("defaults", "option splice-auto")],
    "a connection a request": [_CLOSING],
    "a connection a request, http-reuse safe": [
        _CLOSING,
        ("http-reuse always", "http-reuse safe"),
    ],
    "a connection a request, option tcp-smart-accept": [
        _CLOSING,
        _with("defaults", "option tcp-smart-accept"),
    ],
    "a connection a request, defer-accept": [
        _CLOSING,
        (r"^(    bind fd@\d+)$", r"\1 defer-accept"),
    ],
}


@dataclass(frozen=True)
class Sample:
    """One measurement of a variant.

    Attributes:
        base: microseconds of processor time for a request, of the configuration as it is.
        own: likewise, of the variant, right after that.
    """

    variant: str
    connections: int
    base: float
    own: float


def edited(config: str, edits: Sequence[Edit]) -> str:
    """The configuration after each edit.

    Raises:
        BenchError: an edit matches nothing.
    """
    for pattern, replacement in edits:
        config, matches = re.subn(pattern, replacement, config, flags=re.MULTILINE)
        if not matches:
            raise BenchError(f"the configuration of the front door has nothing like {pattern!r}")
    return config


def measure(
    variants: Mapping[str, Sequence[Edit]], connections: Sequence[int], rounds: int, seconds: int
) -> list[Sample]:
    """Start a door for each variant, and load one at a time.

    Raises:
        BenchError: an edit matches nothing, or a door does not answer each request with 200.
        DoorError: there is no HAProxy.
    """
    samples = []
    with contextlib.ExitStack() as stack:
        # A short path, for the Unix sockets in it.
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="d-")))
        torchserve = scratch / "torchserve.sock"
        stack.enter_context(_haproxy(_BACKEND.format(torchserve), scratch / "torchserve"))
        wait_until(torchserve.exists)
        base, *doors = [
            stack.enter_context(_door(name, edits, scratch / f"{number}", torchserve))
            for number, (name, edits) in enumerate([("as it is", ()), *variants.items()])
        ]
        for round_ in range(1, rounds + 1):
            print(f"round {round_} of {rounds}", flush=True)
            for open_ in connections:
                for name, door in zip(variants, doors, strict=True):
                    pair = [_microseconds(*each, open_, seconds) for each in (base, door)]
                    samples.append(Sample(name, open_, *pair))
    return samples


def _microseconds(
    name: str, process: subprocess.Popen[bytes], url: str, connections: int, seconds: int
) -> float:
    """Processor time that a door needs for a request."""
    before = _cpu_seconds(process)
    load = wrk.run(url, wrk.Request(), connections, seconds)
    if load.failed:
        raise BenchError(f"{name}: requests were not answered with 200: {load}")
    return 1e6 * (_cpu_seconds(process) - before) / load.responses


@contextlib.contextmanager
def _door(
    name: str, edits: Sequence[Edit], directory: Path, torchserve: Path
) -> Iterator[tuple[str, subprocess.Popen[bytes], str]]:
    """The name of a door that answers, its process, and its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = render(
            load_settings(ROOT / "config.properties", {}),
            _ROUTES,
            starting=False,
            listeners={"inference": listener.fileno()},
            admin_socket=directory / "admin.sock",
            metrics_socket=directory / "metrics.sock",
            control_socket=torchserve,
            grpc_socket=torchserve,
            inference_socket=torchserve,
            grpc_port=None,
            token_map=None,
        )
        with _haproxy(edited(config, edits), directory, listener.fileno()) as process:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            request = wrk.Request()

            def status() -> int | None:
                if process.poll() is not None:
                    raise BenchError(f"{name}: {(directory / 'output').read_text()}")
                with contextlib.suppress(requests.ConnectionError):
                    return requests.post(url + request.path, request.body, timeout=10).status_code
                return None

            if (first := wait_until(status)) != 200:
                raise BenchError(f"{name}: expected status 200, got {first}")
            yield name, process, url


@contextlib.contextmanager
def _haproxy(config: str, directory: Path, *descriptors: int) -> Iterator[subprocess.Popen[bytes]]:
    directory.mkdir()
    file = directory / "haproxy.cfg"
    file.write_text(config)
    program, environment = find_haproxy(directory)
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            [str(program), "-db", "-f", str(file)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=output,
            pass_fds=descriptors,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """Processor time of all its threads so far, to the nanosecond; /proc counts in 10 ms.

    The clock's number is what clock_getcpuclockid(3) returns for another process.
    """
    return time.clock_gettime(~process.pid << 3 | 2)


def text(samples: Sequence[Sample]) -> str:
    """A Markdown table: the time of each variant, and how much more it is than as it is."""
    connections = [*dict.fromkeys(sample.connections for sample in samples)]
    as_it_is, *rows = [[name] for name in ("as it is", *dict.fromkeys(s.variant for s in samples))]
    for open_ in connections:
        of = [sample for sample in samples if sample.connections == open_]
        as_it_is += [spread([sample.base for sample in of], "{:.1f}".format), ""]
        for row in rows:
            own = [sample for sample in of if sample.variant == row[0]]
            row.append(spread([sample.own for sample in own], "{:.1f}".format))
            row.append(spread([sample.own - sample.base for sample in own], "{:+.1f}".format))
    head = [part for n in connections for part in (f"µs a request, {n} connections", "difference")]
    return table(["configuration", *head], [as_it_is, *rows])


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print the table; 0, or 1 if it cannot."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.door",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=count, default=5, metavar="N", help="default: %(default)s")
    add("--seconds", type=count, default=1, metavar="N", help="of a measurement")
    add("--connections", type=count, nargs="+", default=[32, 128], metavar="N")
    options = parser.parse_args(arguments)
    about = machine.facts(" ".join(["python -m bench.door", *sys.argv[1:]]))
    try:
        wrk.require()
        samples = measure(VARIANTS, options.connections, options.rounds, options.seconds)
    except (BenchError, DoorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(f"- {key}: {value}" for key, value in about.items()))
    print(f"\nMedians (smallest to largest) of {options.rounds} rounds.\n\n{text(samples)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
