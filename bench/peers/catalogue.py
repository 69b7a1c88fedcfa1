"""Which peers there are, and how each is started."""

import base64
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench import servers
from bench.errors import BenchError
from bench.wrk import Request
from loadtest.servers import ROOT, Server, free_ports

ENVIRONMENTS = ROOT / ".cache" / "peers"
_FILES = Path(__file__).parent
_SITE_PACKAGES = ENVIRONMENTS / "web" / "lib" / "python3.11" / "site-packages"


def _in_base64(body: bytes) -> bytes:
    return json.dumps({"images": [base64.b64encode(body).decode()]}).encode()


def _tensor(**more: object) -> dict[str, object]:
    return {"name": "image", "shape": [1, 1], "datatype": "BYTES", **more}


def _open_inference(body: bytes) -> bytes:
    data = [base64.b64encode(body).decode()]
    tensor = _tensor(parameters={"content_type": "base64"}, data=data)
    return json.dumps({"inputs": [tensor]}).encode()


def _binary_head(body: bytes) -> bytes:
    tensor = _tensor(parameters={"binary_data_size": 4 + len(body)})
    return json.dumps({"inputs": [tensor]}).encode()


def _binary(body: bytes) -> bytes:
    return _binary_head(body) + len(body).to_bytes(4, "little") + body


@dataclass(frozen=True)
class Peer:
    """A way to serve the same network.

    Attributes:
        title: in tables.
        file: its server, in this directory.
        environment: which of `requirements/peers-*.txt` it runs with; empty for this service's own
            Python, which has torch, with what the environment `web` adds if it is there.
        workers: processes that compute; what was best of 1 and 2.
        arguments: of the server file.
        module: program that is given the server file instead, if not Python itself.
        path, content_type: of a request.
        wrap: makes the body of a request of a picture.
        worker: what the command line of a process has that computes; empty for any child.
        variables: of its environment.
    """

    title: str
    file: str
    environment: str = ""
    workers: int = 2
    arguments: tuple[str, ...] = ()
    module: tuple[str, ...] = ()
    path: str = "/predictions/mnist"
    content_type: str = "image/png"
    wrap: Callable[[bytes], bytes] = bytes
    worker: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)

    def request(self, picture: bytes | None = None) -> Request:
        """A request with a picture, by default the sample."""
        plain = Request()
        body = plain.body if picture is None else picture
        headers = {"Content-Type": self.content_type}
        if self.wrap is _binary:
            headers["Inference-Header-Content-Length"] = str(len(_binary_head(body)))
        return Request(self.path, self.wrap(body), headers)

    @property
    def lines(self) -> int:
        """Lines of the server file that are neither empty nor a comment."""
        text = (_FILES / self.file).read_text()
        return sum(
            bool(line.strip()) and not line.strip().startswith("#") for line in text.splitlines()
        )

    @property
    def is_installed(self) -> bool:
        """Whether its environment is there."""
        return not self.environment or (ENVIRONMENTS / self.environment / ".installed").exists()


STARLETTE_ONNX = "starlette-onnx"
PEERS = {
    STARLETTE_ONNX: Peer(
        "Starlette, micro-batcher, ONNX Runtime", "starlette_batcher.py", "web", arguments=("onnx",)
    ),
    "starlette-torchscript": Peer(
        "Starlette, micro-batcher, TorchScript", "starlette_batcher.py", arguments=("torchscript",)
    ),
    "fastapi": Peer("FastAPI, ONNX Runtime", "fastapi_app.py", "web"),
    "litserve": Peer(
        "LitServe", "litserve_server.py", "litserve", content_type="application/octet-stream"
    ),
    "bentoml": Peer(
        "BentoML",
        "bentoml_service.py",
        "bentoml",
        module=("bentoml", "serve", "bench.peers.bentoml_service:Mnist", "--port", "{port}"),
        content_type="application/json",
        wrap=_in_base64,
    ),
    "ray": Peer(
        "Ray Serve",
        "ray_serve.py",
        "ray",
        workers=1,
        worker="ray::ServeReplica",
        variables={
            "RAY_worker_niceness": "0",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
    ),
    "mlserver": Peer(
        "MLServer",
        "mlserver_model.py",
        "mlserver",
        path="/v2/models/mnist/infer",
        content_type="application/json",
        wrap=_open_inference,
    ),
    "stock": Peer(
        "TorchServe, its image handler", "stock_handler.py", worker="model_service_worker"
    ),
    "null": Peer(
        "TorchServe, a handler that does nothing",
        "null_handler.py",
        workers=1,
        worker="model_service_worker",
    ),
    "pytriton": Peer(
        "Triton, through PyTriton",
        "pytriton_server.py",
        "pytriton",
        path="/v2/models/mnist/infer",
        content_type="application/octet-stream",
        wrap=_binary,
        # Triton's own processes embed a Python, and take its library from the system otherwise,
        # which fails if that is of another release than the environment's.
        variables={"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")},
    ),
}
SERVICE = Peer("this service", "", worker="model_service_worker")
_TORCHSERVE = {"stock": servers.STOCK, "null": servers.NULL}


class PeerServer(Server):
    """A peer as a process.

    Args:
        peer: which.
        model: directory with the files of `bench.peers.export`.
        workers: processes that compute.
    """

    def __init__(self, peer: Peer, model: Path, workers: int) -> None:
        ports = [*map(str, free_ports(3))]
        python = str(ENVIRONMENTS / peer.environment / "bin" / "python")
        path = [str(ROOT)]
        if not peer.environment:
            python = sys.executable
            path.append(str(_SITE_PACKAGES))
        command = [python, "-m"]
        command += peer.module or (f"bench.peers.{Path(peer.file).stem}", *peer.arguments)
        url = f"http://127.0.0.1:{ports[0]}"
        super().__init__(
            [part.replace("{port}", ports[0]) for part in command],
            url,
            url,
            PEER_MODEL=str(model),
            PEER_PORTS=" ".join(ports),
            PEER_WORKERS=str(workers),
            PYTHONPATH=":".join(path),
            OMP_NUM_THREADS="1",
            **peer.variables,
        )
        # Not the working directory's, and short, for the Unix sockets in it.
        self._environment |= {
            name: str(self.temporary) for name in ("RAY_TMPDIR", "PYTRITON_HOME", "BENTOML_HOME")
        }
        self.request = peer.request()
        self._ports = " ".join(ports)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        # LitServe's processes outlive it when a signal ends it.
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("PEER_PORTS") == self._ports:
                    process.kill()

    def _stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)


def build(name: str, store: Path, scratch: Path, workers: int | None = None) -> Server:
    """A peer's server, not yet started.

    Args:
        name: key of `PEERS`.
        store: this service's archives.
        scratch: an empty directory.
        workers: processes that compute; by default the peer's choice.

    Raises:
        BenchError: the archive is missing, or its export differs from it.
    """
    peer = PEERS[name]
    if name in _TORCHSERVE:
        return servers.build([_TORCHSERVE[name]], store, scratch, None)[_TORCHSERVE[name]]
    return PeerServer(peer, export(store), workers or peer.workers)


def export(store: Path) -> Path:
    """The directory with the network of a store's mnist as TorchScript and as ONNX.

    They are kept by the archive's digest. Without the environment `web` there is TorchScript alone.

    Raises:
        BenchError: the archive is missing, or the export differs from it.
    """
    servers.require_archives(store)
    archive = store / "mnist.mar"
    directory = ENVIRONMENTS / "model" / hashlib.sha256(archive.read_bytes()).hexdigest()[:16]
    if not _SITE_PACKAGES.exists():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "model.pt").write_bytes(servers.torchscript(archive))
    elif not (directory / "model.onnx").exists():
        done = subprocess.run(
            [sys.executable, "-m", "bench.peers.export", str(archive), str(directory)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(_SITE_PACKAGES)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"the network cannot be exported: {done.stderr[-2000:]}")
        print(done.stdout, end="")
    return directory
