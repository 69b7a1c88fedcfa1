"""Archives that training does not make: with another handler, damaged, altered."""

import zipfile
from pathlib import Path

from training.archive import run_archiver

# Answers every request of a batch with its own body after a delay; knows nothing of `handler`.
SLOW_HANDLER = """
import time

def handle(requests, context):
    if requests is None:
        return None
    time.sleep({seconds})
    return [bytes(request["body"]) for request in requests]
"""

# Answers each request with the size of its batch, once a file has appeared.
COUNTING_HANDLER = """
import os, pathlib, time

gate = pathlib.Path(os.environ["LOG_LOCATION"]) / "open"

def handle(requests, context):
    if requests is None:
        return None
    while not gate.exists():
        time.sleep(0.01)
    return [str(len(requests)).encode()] * len(requests)
"""

# Answers with the id of its process; "stay" only once a file has appeared.
STAYING_HANDLER = """
import os, pathlib, time

gate = pathlib.Path(os.environ["LOG_LOCATION"]) / "open"

def handle(requests, context):
    if requests is None:
        return None
    while requests[0]["body"] == b"stay" and not gate.exists():
        time.sleep(0.01)
    return [str(os.getpid()).encode()] * len(requests)
"""

# Dies at the first request, and cannot be loaded after that.
DYING_HANDLER = """
import os, pathlib

dead = pathlib.Path(os.environ["LOG_LOCATION"]) / "dead"

def handle(requests, context):
    if requests is None:
        assert not dead.exists()
        return None
    dead.touch()
    os._exit(1)
"""

# Answers with the HTTP status that the body asks for, before the next request is taken.
STATUS_HANDLER = """
def handle(requests, context):
    if requests is None:
        return None
    for index, request in enumerate(requests):
        context.set_response_status(int(request["body"]), "as asked for", index)
    return [b""] * len(requests)
"""

FAILING_HANDLER = """
def handle(requests, context):
    raise LookupError("the weights are on holiday")
"""


def foreign(store: Path, name: str, handler: str, config: str = "", version: str = "1.0") -> Path:
    """An archive with a handler of another team's, not this project's."""
    source, yaml = store / f"{name}_handler.py", store / f"{name}.yaml"
    source.write_text(handler)
    yaml.write_text(config or "batchSize: 1\n")
    return run_archiver(store, name, version, source, "--config-file", yaml, "--force")


def altered(archive: Path, target: Path, changes: dict[str, bytes]) -> Path:
    """A copy in which some files have other content."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, changes.get(name, old.read(name)))
    return target
