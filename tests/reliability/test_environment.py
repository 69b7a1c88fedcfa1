"""A machine that lets the server down: each time a clear message, or no effect."""

import errno
import os
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import requests

from loadtest.servers import wait_until
from loadtest.traffic import Load, keep_alive
from tests.archives import foreign
from tests.deploy.programs import program, unavailable
from tests.reliability.record import Section, scaled
from tests.serving import ServerProcess

XOR = b'{"instances": [[0, 1]]}'
MIB = 1 << 20
SECTION = Section(
    60,
    "The machine",
    "What the server says, or does not even notice, when the machine lets it down.",
)


class Confined(ServerProcess):
    """A server in a mount namespace of its own, in which commands of a shell are run before.

    Args:
        store: of the archives.
        commands: of the shell, as root; `$D` is the server's temporary directory.
        prefix: of the server's command, such as `prlimit`.
        environment: as `ServerProcess`.
    """

    def __init__(
        self, store: Path, *commands: str, prefix: Sequence[str] = (), **environment: str
    ) -> None:
        super().__init__(store, "xor", **environment)
        # Coverage would write beside the code, which may be read-only here.
        self._environment |= {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}
        script = "\n".join(["set -e", "D={directory}", *commands, 'exec "$@"'])
        unshare = ["unshare", "--mount", "sh", "-c", script, "sh"]
        self._command = [*(unshare if commands else ()), *prefix, *self._command]

    def inner(self, path: Path) -> Path:
        """A path as it is in the server's mount namespace."""
        return Path(f"/proc/{self.process.pid}/root{path}")


@pytest.fixture(autouse=True, scope="module")
def _namespaces() -> None:
    command = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        unavailable("mount namespaces need root")


def predict(server: ServerProcess) -> requests.Response:
    return requests.post(server.url("xor"), data=XOR, timeout=60)


def last_lines(server: ServerProcess, count: int = 5) -> str:
    return "\n".join(server.output.rstrip().splitlines()[-count:])


def refuses_to_start(server: ServerProcess) -> str:
    """The message of a server that ends by itself: one line, no stack trace."""
    assert server.wait(120) == 1
    assert "Traceback" not in server.output
    assert server.last_line.startswith("error: "), server.output
    return server.last_line


# --- Disk.


def small_disk(mib: float) -> str:
    """A disk of so many MiB for the run's directory, apart from what the server prints."""
    return f"mkdir $D/run && mount -t tmpfs -o size={int(mib * 1024)}k tmpfs $D/run"


def on_small_disk(store: Path, mib: float, **environment: str) -> Confined:
    server = Confined(store, small_disk(mib), **environment)
    run = str(server.temporary / "run")
    server._environment |= {"TMPDIR": run, "LOG_LOCATION": run, "METRICS_LOCATION": run}
    return server


def fill(directory: Path) -> Path:
    """Write until the disk is full; the file that fills it."""
    file = directory / "ballast"
    with file.open("ab", buffering=0) as out:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    out.write(b"x" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return file


@pytest.mark.parametrize("mib", [0.004, 0.02, 0.05, 0.1, 0.3])
def test_a_disk_that_is_full_at_the_start(store: Path, mib: float) -> None:
    with on_small_disk(store, mib) as server:
        message = refuses_to_start(server)
    assert "No space left on device" in message, message
    SECTION.record({"what": f"a disk of {mib * 1000:.0f} kB at the start", "outcome": message})


def test_a_disk_that_fills_up(store: Path) -> None:
    """Requests are answered; a reload is refused; a worker that died comes back with the space."""
    with on_small_disk(store, 24) as server:
        server.wait_until_ready()
        inner = server.inner(server.temporary / "run")
        ballast = fill(inner)
        with Load(
            *[keep_alive(server.url("xor"), [XOR, b"{", b'{"instances": [[7]]}'])] * 4
        ) as load:
            wait_until(lambda: len(load.outcomes) > scaled(500, 5_000))
            reload = requests.post(f"{server.telemetry}/reload", timeout=180)
        assert reload.status_code == 409
        assert "No space left on device" in reload.json()["reason"]
        assert set(load.statuses) == {200, 400}
        assert server.metric("serving_worker_starts_total") == 1
        assert server.probe("/readyz")[0] == 200
        workers = [p for p in server.family() if "model_service_worker" in " ".join(p.cmdline())]
        for worker in workers:
            worker.kill()
        wait_until(lambda: server.probe("/readyz")[0] == 503)
        ballast.unlink()
        server.wait_until_ready(180)
        assert predict(server).status_code == 200
        again = requests.post(f"{server.telemetry}/reload", timeout=180)
        assert again.status_code == 200, again.text
    SECTION.record(
        {"what": "a disk that fills up", "sent": len(load.outcomes), "failed": 0},
        notes=f"reload refused: {reload.json()['reason']}",
    )


# What is mounted by itself does not become read-only with `/`.
READ_ONLY = (
    "mount -o remount,bind,ro /",
    "for M in /tmp /var/tmp /dev/shm; do mount --bind $M $M; mount -o remount,bind,ro $M; done",
)


def test_nothing_can_be_written(store: Path) -> None:
    """All temporary directories are read-only, and so is the working directory."""
    with Confined(store, *READ_ONLY) as server:
        message = refuses_to_start(server)
    assert "temporary directory" in message
    SECTION.record({"what": "a file system that is read-only", "outcome": message})


@pytest.mark.parametrize("has_logs", [True, False])
def test_only_the_temporary_directory_can_be_written(store: Path, has_logs: bool) -> None:
    """As in a pod with a read-only root."""
    commands = (
        "mkdir $D/run && mount -t tmpfs tmpfs $D/run",
        "mount -o remount,bind,ro /",
    )
    server = Confined(store, *commands)
    run = str(server.temporary / "run")
    server._environment["TMPDIR"] = run
    for name in ("LOG_LOCATION", "METRICS_LOCATION"):
        server._environment[name] = run if has_logs else "/proc/nowhere"
    with server:
        if has_logs:
            server.wait_until_ready()
            assert predict(server).status_code == 200
            assert requests.post(f"{server.telemetry}/reload", timeout=180).status_code == 200
            assert predict(server).status_code == 200
            outcome = "no effect"
        else:
            outcome = refuses_to_start(server)
            assert "/proc/nowhere; LOG_LOCATION names another" in outcome
    where = "TMPDIR and logs" if has_logs else "TMPDIR"
    SECTION.record({"what": f"only {where} can be written", "outcome": outcome})


def test_no_shared_memory(store: Path) -> None:
    with Confined(store, "mount -t tmpfs -o ro,mode=000 tmpfs /dev/shm") as server:
        server.wait_until_ready()
        assert predict(server).status_code == 200
    SECTION.record({"what": "no /dev/shm", "outcome": "no effect"})


# --- Clock.


# Adds to the wall clock what a file says, in every process that loads it; waits do not change.
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile int *offset;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("CLOCK_OFFSET"), O_RDONLY | O_CLOEXEC);
    offset = mmap(0, 4, PROT_READ, MAP_SHARED, file, 0);
    real = dlsym(RTLD_NEXT, "clock_gettime");
}
int clock_gettime(clockid_t id, struct timespec *out) {
    if (!real) begin();
    int result = real(id, out);
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) out->tv_sec += *offset;
    return result;
}
int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


@pytest.fixture
def clock(tmp_path: Path) -> dict[str, str]:
    """The environment of a server whose wall clock is ahead by what `tmp_path / "offset"` says."""
    (tmp_path / "clock.c").write_text(CLOCK)
    library, offset = tmp_path / "clock.so", tmp_path / "offset"
    command = [program("cc"), "-shared", "-fPIC", "-o", str(library), str(tmp_path / "clock.c")]
    subprocess.run(command, check=True)
    offset.write_bytes(bytes(4))
    return {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)}


def test_the_clock_jumps_by_an_hour(store: Path, tmp_path: Path, clock: dict[str, str]) -> None:
    def said(server: ServerProcess) -> float:
        """The time that the server has."""
        date = requests.get(f"{server.telemetry}/livez", timeout=60).headers["Date"]
        return time.mktime(time.strptime(date, "%a, %d %b %Y %H:%M:%S %Z"))

    with Confined(store, RATE_LIMIT="100000", ACCESS_LOG="all", **clock) as server:
        server.wait_until_ready()
        start = said(server)
        with Load(*[keep_alive(server.url("xor"), [XOR], idle=0.01)] * 4) as load:
            for jump in (3600, -3600, 0):
                seen = len(load.outcomes)
                with (tmp_path / "offset").open("r+b", buffering=0) as offset:
                    offset.write(struct.pack("=i", jump))
                wait_until(lambda seen=seen: len(load.outcomes) > seen + 200)  # type: ignore[misc]
                # uvicorn makes the header anew once a second.
                wait_until(lambda jump=jump: abs(said(server) - start - jump) < 1000)  # type: ignore[misc]
                assert server.probe("/readyz")[0] == 200
                assert server.probe("/livez")[0] == 200
                assert requests.post(f"{server.telemetry}/reload", timeout=180).status_code == 200
        assert set(load.statuses) == {200}
        assert server.metric("serving_torchserve_starts_total") == 4
        assert server.metric("serving_worker_starts_total") == 4
    SECTION.record(
        {"what": "the clock jumps by an hour, either way", "sent": len(load.outcomes), "failed": 0}
    )


# --- File descriptors.


@pytest.mark.parametrize("limit", [1024, 4096])
def test_few_file_descriptors(store: Path, limit: int) -> None:
    """A hard limit, which only root can raise: connections beyond it wait, and nothing fails."""
    powerless = ["--bounding-set=-all", "--inh-caps=-all"]
    prefix = [program("prlimit"), f"--nofile={limit}:{limit}", program("setpriv"), *powerless]
    with Confined(store, prefix=prefix) as server:
        server.wait_until_ready()
        users = [keep_alive(server.url("xor"), [XOR], idle=0.5) for _ in range(limit // 2)]
        with Load(*users) as load:
            wait_until(lambda: load.statuses[200] > limit, 120)
            for path in ("/readyz", "/metrics"):
                assert server.probe(path)[0] == 200
        assert set(load.statuses) <= {200, 503}
        assert requests.post(f"{server.telemetry}/reload", timeout=180).status_code == 200
        assert predict(server).status_code == 200
    SECTION.record(
        {"what": f"{limit:,} file descriptors", "sent": len(load.outcomes), "failed": 0},
        notes=f"{limit // 2:,} connections at once",
    )


# --- The store.


def test_a_store_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """It is written in place: each reload serves a whole archive, or says why not."""
    store = tmp_path / "store"
    staging = tmp_path / "staging"
    for directory in (store, staging):
        directory.mkdir()
    handler = (
        "def handle(requests, context):\n"
        "    return None if requests is None else [b'{}'] * len(requests)\n"
        "# {}\n"
    )
    contents = [
        foreign(staging, "m", handler.format(version, os.urandom(200_000).hex())).read_bytes()
        for version in ("first", "second")
    ]
    (store / "m.mar").write_bytes(contents[0])
    over = threading.Event()

    def write() -> None:
        turn = 0
        while not over.wait(0.02):
            turn += 1
            content = contents[turn % 2]
            with (store / "m.mar").open("wb") as out:
                for begin in range(0, len(content), 1 << 12):
                    out.write(content[begin : begin + (1 << 12)])
                    out.flush()

    outcomes = []
    with ServerProcess(store) as server:
        server.wait_until_ready()
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(scaled(4, 12)):
                answer = requests.post(f"{server.telemetry}/reload", timeout=180)
                assert answer.status_code in (200, 409)
                if answer.status_code == 409:
                    assert "m.mar" in answer.json()["reason"]
                body = requests.post(server.url("m"), data=b"x", timeout=60).content
                assert body in (b"first", b"second")
                outcomes.append(answer.status_code)
        finally:
            over.set()
            writer.join()
        assert requests.post(f"{server.telemetry}/reload", timeout=180).status_code == 200
    SECTION.record(
        {"what": "a store that changes while it is read", "sent": len(outcomes), "failed": 0},
        notes=f"{outcomes.count(409)} of {len(outcomes)} reloads refused, with the archive's name",
    )
