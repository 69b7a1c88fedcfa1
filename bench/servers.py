"""The servers that are compared."""

import contextlib
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import requests

from bench.errors import BenchError
from bench.wrk import Request
from handler.card import TORCHSCRIPT_FILE
from loadtest.servers import ROOT, Server, Service, free_addresses, free_ports, wait_until
from server.torchserve import find_java, torchserve_home
from training.archive import run_archiver

PEERS = Path(__file__).parent / "peers"
SERVICE, NO_METRICS, STOCK = "this service", "without its metrics", "stock image handler"
NULL, NULL_ALONE = "null handler", "null handler, batch size 1"
OTHER = "other version"
_BATCHES, _ALONE = "batchSize: 64\nmaxBatchDelay: 1\n", "batchSize: 1\n"
# Of the null handler; the default queue, 100 requests, is too short for 128 connections.
_TUNED = {
    "default_workers_per_model": "1",
    "metrics_mode": "prometheus",
    "job_queue_size": "300",
    "disable_system_metrics": "true",
}


class PlainTorchServe(Server):
    """TorchServe's own frontend and workers, without anything of this project.

    Args:
        archive: what to serve, as the only model.
        configuration: keys of its `config.properties` other than the addresses.
        java: options of the JVM.
        environment: on top of this process's.
    """

    def __init__(
        self,
        archive: Path,
        configuration: dict[str, str],
        java: Sequence[str] = (),
        **environment: str,
    ) -> None:
        home = torchserve_home()
        names = ("inference", "management", "metrics")
        urls = [f"http://127.0.0.1:{port}" for port in free_ports(len(names))]
        keys = {f"{name}_address": url for name, url in zip(names, urls, strict=True)}
        keys |= {"grpc_inference_port": "0", "grpc_management_port": "0"}
        keys |= {"disable_token_authorization": "true", "enable_envvars_config": "false"}
        lines = [f"{key}={value}" for key, value in (keys | configuration).items()]
        file = archive.with_suffix(".properties")
        file.write_text("\n".join(lines))
        command = [str(find_java()), *java, f"-Dmodel_server_home={home}"]
        command += ["-Djava.io.tmpdir={directory}", "-cp", f"{home}/ts/frontend/*"]
        command += ["org.pytorch.serve.ModelServer", "--python", sys.executable]
        command += ["--ts-config-file", str(file), "--model-store", str(archive.parent)]
        command += ["--models", archive.name, "--no-config-snapshot"]
        self._model = f"{urls[1]}/models/{archive.stem}"
        super().__init__(command, urls[0], self._model, **environment)
        # Not the root of the repository: nothing of it shall be found from there.
        self.cwd = self.temporary

    def _is_ready(self) -> bool:
        if not super()._is_ready():
            return False
        (model,) = requests.get(self._model, timeout=10).json()
        minimum: int = model["minWorkers"]
        return [worker["status"] for worker in model["workers"]].count("READY") >= minimum


class OtherVersion(Service):
    """This service from another checkout of its repository, with the archives there.

    Args:
        checkout: root of the repository; versions before `server/` are started as
            `python -m handler`.

    Raises:
        BenchError: it is not a checkout, or it has no archive of mnist.
    """

    def __init__(self, checkout: Path) -> None:
        checkout = checkout.resolve()
        modules = [name for name in ("server", "handler") if (checkout / name).is_dir()]
        if not modules:
            raise BenchError(f"{checkout} has neither server/ nor handler/: is it a checkout?")
        store = checkout / "model_store"
        require_archives(store)
        self.module = modules[0]
        addresses = free_addresses()
        inference = next(iter(addresses.values()))
        # Each version knows one of these.
        addresses |= {"INFERENCE_ADDRESS": inference, "TS_INFERENCE_ADDRESS": inference}
        super().__init__(store, PYTHONPATH=str(checkout), **addresses)
        self.cwd = checkout


def request_to(server: Server) -> Request:
    """What a server is loaded with."""
    request: Request = getattr(server, "request", Request())
    return request


@contextlib.contextmanager
def running(server: Server) -> Iterator[float]:
    """Seconds from a server's start to its first answer; it runs in the `with` block.

    Raises:
        BenchError: it ended, or did not answer within three minutes.
    """
    request = request_to(server)

    def answers() -> bool:
        if server.process.poll() is not None:
            raise BenchError(f"the server ended: {server.output[-2000:]}")
        with contextlib.suppress(requests.RequestException):
            url = f"{server.inference}{request.path}"
            answer = requests.post(url, request.body, headers=request.headers, timeout=10)
            return answer.status_code == 200
        return False

    started = time.monotonic()
    server.start()
    try:
        try:
            wait_until(answers, timeout=180)
        except TimeoutError:
            raise BenchError(f"no answer within 180 s: {server.output[-2000:]}") from None
        yield time.monotonic() - started
    finally:
        server.__exit__()


def require_archives(store: Path) -> None:
    """Check that a model store has what the service serves.

    Raises:
        BenchError: an archive is missing.
    """
    for name in ("mnist", "xor"):
        if not (store / f"{name}.mar").is_file():
            raise BenchError(f"{store} has no {name}.mar: run `make train`")


def torchscript(archive: Path) -> bytes:
    """The TorchScript in an archive."""
    with zipfile.ZipFile(archive) as mar:
        return mar.read(TORCHSCRIPT_FILE)


def archive(directory: Path, name: str, handler: Path, *options: str, config: str = "") -> Path:
    """Build an archive for a peer."""
    directory.mkdir()
    if config:
        (directory / "model-config.yaml").write_text(config)
        options += ("--config-file", str(directory / "model-config.yaml"))
    return run_archiver(directory, name, "1.0", handler, *options)


def _service(store: Path, _: Path) -> Server:
    return Service(store)


def _without_metrics(store: Path, scratch: Path) -> Server:
    silent = scratch / "silent"
    silent.mkdir()
    with (
        zipfile.ZipFile(store / "mnist.mar") as mar,
        zipfile.ZipFile(silent / "mnist.mar", "w") as copy,
    ):
        for name in mar.namelist():
            is_metrics = name == "handler/metrics.py"
            content = (PEERS / "no_metrics.py").read_bytes() if is_metrics else mar.read(name)
            copy.writestr(name, content)
    shutil.copy(store / "xor.mar", silent)
    return Service(silent)


def _stock(store: Path, scratch: Path) -> Server:
    file = scratch / TORCHSCRIPT_FILE
    file.write_bytes(torchscript(store / "mnist.mar"))
    options = ("--serialized-file", str(file))
    stock = archive(scratch / "stock", "mnist", PEERS / "stock_handler.py", *options)
    return PlainTorchServe(stock, {}, PYTHONPATH=str(ROOT))


def _null(_: Path, scratch: Path, directory: str, config: str) -> Server:
    null = archive(scratch / directory, "mnist", PEERS / "null_handler.py", config=config)
    # Its log, a line or two a request, would be most of what a handler that does nothing costs.
    quiet = f"-Dlog4j2.configurationFile={(ROOT / 'server' / 'log4j2.xml').as_uri()}"
    return PlainTorchServe(null, _TUNED, (quiet,))


# Called with the model store and a scratch directory.
_BUILDERS: dict[str, Callable[[Path, Path], Server]] = {
    SERVICE: _service,
    NO_METRICS: _without_metrics,
    STOCK: _stock,
    NULL: partial(_null, directory="null", config=_BATCHES),
    NULL_ALONE: partial(_null, directory="alone", config=_ALONE),
}
# As the command line has them.
NAMES = dict(zip(("service", "no-metrics", "stock", "null", "null-alone"), _BUILDERS, strict=True))


def build(
    names: Sequence[str], store: Path, scratch: Path, beside: Path | None
) -> dict[str, Server]:
    """The servers to compare, not yet started.

    Args:
        names: values of `NAMES`.
        store: archives of this version.
        scratch: an empty directory for the archives of its peers.
        beside: another checkout to compare with.

    Raises:
        BenchError: an archive is missing.
    """
    require_archives(store)
    other = {OTHER: OtherVersion(beside)} if beside else {}
    return {name: _BUILDERS[name](store, scratch) for name in names} | other
