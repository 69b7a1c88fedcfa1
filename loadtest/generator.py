"""The command that starts Locust with this project's locustfile."""

import sys


def command(host: str, telemetry: str, artifacts: str) -> list[str]:
    """Locust's command line, to be run in the root of the repository.

    Args:
        host: URL of the service.
        telemetry: URL of its telemetry; empty leaves the choice to the locustfile.
        artifacts: directory for the report.
    """
    line = [sys.executable, "-m", "locust", "--config", "loadtest/locust.conf"]
    line += ["--host", host, "--artifacts", artifacts]
    # An empty option would override the environment.
    return line + (["--telemetry", telemetry] if telemetry else [])
