"""Loads a URL with `wrk`."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import BenchError
from loadtest.servers import ROOT

_SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True)
class Request:
    """What is posted over and over: by default an image, as this service takes it."""

    path: str = "/predictions/mnist"
    body: bytes = (ROOT / "samples" / "seven.png").read_bytes()
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "image/png"})


@dataclass(frozen=True)
class Load:
    """What wrk counted.

    Attributes:
        responses: those that were received whole, whatever their status.
        error_responses: those of them with a status over 399.
        broken: connections that were refused or ended without a response; none of `responses`.
        seconds: duration.
        p50, p90, p99, p999: latency in seconds, of all responses.
    """

    responses: int
    error_responses: int
    broken: int
    seconds: float
    p50: float
    p90: float
    p99: float
    p999: float

    @property
    def rate(self) -> float:
        """Successful responses a second."""
        return (self.responses - self.error_responses) / self.seconds

    @property
    def failed(self) -> float:
        """Share of the requests that had no successful response."""
        requests = self.responses + self.broken
        return (self.error_responses + self.broken) / max(requests, 1)


def require() -> None:
    """See that `wrk` is installed.

    Raises:
        BenchError: it is not.
    """
    if not shutil.which("wrk"):
        raise BenchError("wrk is not installed: `apt-get install wrk`, or your system's package")


def run(server: str, request: Request, connections: int, seconds: int) -> Load:
    """Post a request over and over, one at a time on each connection.

    Args:
        server: URL without a path.
        request: to post.
        connections: how many.
        seconds: how long.

    Raises:
        BenchError: wrk failed, or there was no response.
    """
    url = f"{server}{request.path}"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    # wrk leaves a response out of the percentiles that took longer than its timeout, by default
    # 2 s. It receives none after the end of the run, so none can take longer than this.
    command += ["--timeout", f"{seconds + 1}s", "-s", str(_SCRIPT), url, "--"]
    with tempfile.NamedTemporaryFile() as body:
        body.write(request.body)
        body.flush()
        command += [body.name, *(part for header in request.headers.items() for part in header)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"wrk failed: {(done.stderr + done.stdout).strip()}")
    load = Load(**json.loads(done.stderr.strip().splitlines()[-1]))
    if not load.responses:
        raise BenchError(f"{url} did not respond within {seconds} s")
    return load
