#!/usr/bin/env python3
"""The Python that TorchServe starts its workers with.

It runs TorchServe's own worker unchanged, and leaves three things in the run's directory for the
server process, which TorchServe itself tells nobody: whether the worker is busy (so that a drain
knows when the last request is answered, whatever handler serves it), why a model failed to load,
and nothing at all in the log for a request that went well. And it reads requests from the frontend
through a buffer: TorchServe's reader makes a system call for every field, about thirty a request.
"""

import functools
import json
import logging
import mmap
import os
import runpy
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

RUN_DIRECTORY = "SERVER_RUN_DIRECTORY"
BUSY = "busy"
FAILED = "failed"


def instrument(run_directory: Path) -> None:
    """Wrap the calls of TorchServe's worker through which every handler is reached."""
    from ts.model_loader import TsModelLoader
    from ts.protocol import otf_message_handler
    from ts.service import Service

    flag_file = run_directory / BUSY / str(os.getpid())
    flag_file.write_bytes(b"\0")
    with flag_file.open("r+b") as file:
        busy = mmap.mmap(file.fileno(), 1)
    load, predict = TsModelLoader.load, Service.predict

    @functools.wraps(load)
    def reporting_load(loader: Any, model_name: str, *args: Any, **kwargs: Any) -> Any:
        failure = run_directory / FAILED / f"{model_name}.json"
        try:
            service = load(loader, model_name, *args, **kwargs)
        except BaseException as error:
            report = {
                "error": "".join(traceback.format_exception_only(error)).strip(),
                "traceback": traceback.format_exc(),
            }
            partial = failure.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(report))
            partial.replace(failure)
            raise
        failure.unlink(missing_ok=True)
        # TorchServe's worker logs a line a batch, which its frontend reads and writes again.
        logging.disable(logging.INFO)
        return service

    @functools.wraps(predict)
    def marking_predict(service: Any, batch: Any) -> Any:
        busy[0] = 1
        try:
            return predict(service, batch)
        finally:
            busy[0] = 0

    def retrieve_first(connection: socket.socket, length: int) -> bytes:
        read = connection.makefile("rb", buffering=1 << 16).read

        def retrieve(_: socket.socket, length: int) -> bytes:
            data: bytes = read(length)
            if len(data) < length:
                sys.exit(0)  # the frontend is gone
            return data

        # A worker has one connection in its life.
        otf_message_handler._retrieve_buffer = retrieve  # noqa: SLF001
        return retrieve(connection, length)

    TsModelLoader.load = reporting_load
    Service.predict = marking_predict
    otf_message_handler._retrieve_buffer = retrieve_first  # noqa: SLF001


def main() -> None:
    """Run the script given, instrumented if it is the worker."""
    del sys.path[0]  # this file's directory, whose modules would hide others of their names
    del sys.argv[0]
    run_directory = os.environ.get(RUN_DIRECTORY)
    if run_directory and Path(sys.argv[0]).name == "model_service_worker.py":
        instrument(Path(run_directory))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
