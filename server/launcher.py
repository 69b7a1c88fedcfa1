#!/usr/bin/env python3
"""The interpreter with which TorchServe starts its workers.

It runs TorchServe's own worker with four changes. It leaves a file in the run's directory for each
worker process, so that restarts can be counted. It leaves another with the reason if a model fails
to load, which TorchServe itself does not report. It reads requests from the frontend through a
buffer: TorchServe's reader makes a system call for every field, about thirty per request. And it
ends when the frontend does, whatever it computes.
"""

import functools
import json
import logging
import os
import runpy
import select
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

RUN_DIRECTORY = "SERVER_RUN_DIRECTORY"
# Set where a worker without a GPU has to say why.
REQUIRE_GPU = "SERVER_REQUIRE_GPU"
STARTED = "started"
FAILED = "failed"
NO_GPU = "no-gpu"
# For a failure of this launcher itself, whatever the worker's model.
LAUNCHER_FAILURE = "launcher.json"


def failure_file(run_directory: Path, name: str, version: str) -> Path:
    """The file with the reason why a model failed to load."""
    return run_directory / FAILED / f"{quote(name, safe='')}@{quote(version, safe='')}.json"


def no_gpu_file(run_directory: Path, name: str, version: str) -> Path:
    """The file with the reason why a model computes on the CPU."""
    return run_directory / NO_GPU / f"{quote(name, safe='')}@{quote(version, safe='')}"


def instrument(run_directory: Path) -> None:
    """Replace the functions of TorchServe's worker that this module changes.

    Raises:
        AttributeError: this TorchServe's worker lacks one of them.
    """
    from ts.model_loader import TsModelLoader
    from ts.protocol import otf_message_handler

    (run_directory / STARTED / str(os.getpid())).touch()
    load = TsModelLoader.load
    # Read so that a TorchServe without it fails here, and not by an unused name.
    otf_message_handler._retrieve_buffer  # noqa: B018, SLF001

    @functools.wraps(load)
    def reporting_load(
        loader: Any, model_name: str, model_dir: str, *args: Any, **kwargs: Any
    ) -> Any:
        failure = failure_file(run_directory, model_name, _version(Path(model_dir)))
        try:
            service = load(loader, model_name, model_dir, *args, **kwargs)
        except BaseException as error:
            _report(error, failure)
            raise
        failure.unlink(missing_ok=True)
        if os.environ.get(REQUIRE_GPU):
            gpu_id = service.context.system_properties.get("gpu_id")
            file = no_gpu_file(run_directory, model_name, _version(Path(model_dir)))
            if reason := reason_without_gpu(gpu_id):
                file.write_text(reason)
            else:
                file.unlink(missing_ok=True)
        # TorchServe's worker logs a line a batch, which its frontend reads and writes again.
        logging.disable(logging.INFO)
        return service

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
    otf_message_handler._retrieve_buffer = retrieve_first  # noqa: SLF001


def end_with_parent() -> None:
    """End this process with the frontend.

    TorchServe's worker notices its end when it reads the next request, and so never while a handler
    computes for ever.
    """
    try:
        parent = os.pidfd_open(os.getppid())
    except OSError:  # a kernel before 5.3, or a sandbox that does not let it through
        return

    def wait() -> None:
        select.select([parent], [], [])
        os._exit(1)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


def reason_without_gpu(gpu_id: int | None) -> str | None:
    """Why a worker cannot use the GPU that TorchServe gave it, or None if it can."""
    import torch

    try:
        torch.zeros(1, device=f"cuda:{gpu_id or 0}")
    except (RuntimeError, AssertionError) as error:  # the latter where torch has no CUDA
        return str(error).strip().splitlines()[0]
    return "TorchServe found none (nvidia-smi)" if gpu_id is None else None


def _report(error: BaseException, file: Path) -> None:
    report = {
        "error": "".join(traceback.format_exception_only(error)).strip(),
        "traceback": traceback.format_exc(),
    }
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(report))
    partial.replace(file)


def _version(model_directory: Path) -> str:
    manifest = json.loads((model_directory / "MAR-INF" / "MANIFEST.json").read_text())
    version: str = manifest["model"].get("modelVersion", "1.0")
    return version


def main() -> None:
    """Run the script given, instrumented if it is the worker."""
    del sys.path[0]  # this file's directory, whose modules would hide others of their names
    del sys.argv[0]
    run_directory = os.environ.get(RUN_DIRECTORY)
    if run_directory and Path(sys.argv[0]).name == "model_service_worker.py":
        end_with_parent()
        try:
            instrument(Path(run_directory))
        except AttributeError as error:
            _report(error, Path(run_directory) / FAILED / LAUNCHER_FAILURE)
            raise
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
