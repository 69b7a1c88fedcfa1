"""Loads a URL with `wrk`."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError

_SCRIPT = Path(__file__).with_name("wrk.lua")


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


def run(url: str, body: Path, content_type: str, connections: int, seconds: int) -> Load:
    """Post a file over and over, one request at a time on each connection.

    Raises:
        BenchError: wrk failed, or there was no response.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    # wrk leaves a response out of the percentiles that took longer than its timeout, by default
    # 2 s. It receives none after the end of the run, so none can take longer than this.
    command += ["--timeout", f"{seconds + 1}s", "-s", str(_SCRIPT), url]
    command += ["--", str(body), content_type]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"wrk failed: {(done.stderr + done.stdout).strip()}")
    load = Load(**json.loads(done.stderr.strip().splitlines()[-1]))
    if not load.responses:
        raise BenchError(f"{url} did not respond within {seconds} s")
    return load
