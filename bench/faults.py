"""What clients of a server see of a bad neighbour, a stop, a killed worker and large bodies."""

import asyncio
import contextlib
import os
import signal
import struct
import subprocess
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import requests

from bench.peers.catalogue import Peer
from bench.servers import request_to, running
from bench.wrk import Request
from loadtest.servers import Server
from loadtest.traffic import LOST, REFUSED, Client, Load, keep_alive

_NEIGHBOURS, _REPEATS = 31, 8
_IN_FLIGHT = 20
_LARGE_CONNECTIONS, _LARGE_EACH, _LARGE_BYTES = 300, 3, 1 << 20
# How long a server may take to answer again.
_PATIENCE_SECONDS = 10.0
_TAG = struct.Struct(">I4s")


def large_picture(size: int) -> bytes:
    """The sample PNG with a private chunk that makes it as large; every decoder skips that."""
    sample = Request().body
    head, rest = sample[:33], sample[33:]  # signature and IHDR
    content = bytes(size - len(sample) - 12)
    checksum = zlib.crc32(b"prVt" + content)
    return head + _TAG.pack(len(content), b"prVt") + content + struct.pack(">I", checksum) + rest


def measure(peer: Peer, start: Callable[[], Server]) -> dict[str, Any]:
    """Do all of it to a server, which is started again where it does not recover.

    Args:
        peer: what it takes.
        start: makes a server that has not been started.

    Raises:
        BenchError: it does not start.
    """
    found: dict[str, Any] = {}
    steps: dict[str, Callable[[Server, Peer], dict[str, Any]]] = {
        "form": form,
        "bad": bad,
        "killed": killed,
        "large": large,
        "stopped": stopped,
    }
    with contextlib.ExitStack() as stack:
        server = start()
        stack.enter_context(running(server))
        for name, step in steps.items():
            found[name] = step(server, peer)
            if name != "stopped" and not _recovers(server):
                found[name]["recovered"] = False
                stack.close()
                server = start()
                stack.enter_context(running(server))
            print(f"  {name}: {found[name]}", flush=True)
    return found


def _headers(request: Request) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())


def _recovers(server: Server) -> bool:
    """Whether it answers within a while: three times in a row, as not every worker may."""
    request, deadline = request_to(server), time.monotonic() + _PATIENCE_SECONDS
    good = 0
    while time.monotonic() < deadline and good < 3:
        with contextlib.suppress(requests.RequestException):
            url = f"{server.inference}{request.path}"
            answer = requests.post(url, request.body, headers=request.headers, timeout=5)
            good = good + 1 if answer.status_code == 200 else 0
            continue
        good = 0
        time.sleep(0.1)
    return good == 3


def form(server: Server, peer: Peer) -> dict[str, Any]:
    """The body with the content type that curl's `-d` and `--data-binary` send."""
    request = peer.request()
    headers = {**request.headers, "Content-Type": "application/x-www-form-urlencoded"}
    url = f"{server.inference}{request.path}"
    return {"status": requests.post(url, request.body, headers=headers, timeout=10).status_code}


def bad(server: Server, peer: Peer) -> dict[str, Any]:
    """One truncated picture among 32 requests that are sent at once, eight times."""
    request = peer.request()
    bad = peer.request(request.body[:100] if peer.wrap is bytes else Request().body[:100])
    url = f"{server.inference}{request.path}"

    async def run() -> tuple[Counter[int], Counter[int]]:
        clients = [Client(url) for _ in range(_NEIGHBOURS + 1)]
        neighbours: Counter[int] = Counter()
        own: Counter[int] = Counter()
        for _ in range(_REPEATS):
            asked = [client.ask(request.body, _headers(request)) for client in clients]
            asked[_NEIGHBOURS // 2].close()
            asked[_NEIGHBOURS // 2] = clients[_NEIGHBOURS // 2].ask(bad.body, _headers(bad))
            outcomes = await asyncio.gather(*asked)
            own[outcomes.pop(_NEIGHBOURS // 2).status] += 1
            neighbours.update(outcome.status for outcome in outcomes)
        for client in clients:
            await client.close()
        return neighbours, own

    neighbours, own = asyncio.run(run())
    return {
        "neighbours": neighbours.total(),
        "failed": neighbours.total() - neighbours[200],
        "bad": _counts(own),
    }


def _users(server: Server, count: int) -> Load:
    request = request_to(server)
    url = f"{server.inference}{request.path}"
    user = keep_alive(url, [request.body], headers=_headers(request))
    return Load(*[user] * count)


def killed(server: Server, peer: Peer) -> dict[str, Any]:
    """SIGKILL of the worker that has computed most, under 16 clients."""
    with _users(server, 16) as load:
        before = {process.pid: _cpu(process) for process in _workers(server, peer)}
        time.sleep(1)
        workers = _workers(server, peer)
        if not workers:
            return {"failed": None}
        busiest = max(workers, key=lambda process: _cpu(process) - before.get(process.pid, 0.0))
        busiest.kill()
        time.sleep(4)
    return {"sent": len(load.outcomes), "failed": _failed(load), "statuses": _counts(load.statuses)}


def _workers(server: Server, peer: Peer) -> Sequence[psutil.Process]:
    """The processes that compute; the server's own is not among them."""
    found = []
    for process in server.family():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if process.pid != server.process.pid and peer.worker in line:
                found.append(process)
    return found


def _cpu(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def large(server: Server, peer: Peer) -> dict[str, Any]:
    """900 bodies of 1 MiB from 300 connections, three from each."""
    plain = len(peer.request(b"").body)
    # Base64 makes four bytes of three.
    size = _LARGE_BYTES if peer.wrap is bytes else (_LARGE_BYTES - plain) * 3 // 4
    request = peer.request(large_picture(size))
    url = f"{server.inference}{request.path}"
    headers = _headers(request)
    user = keep_alive(url, [request.body], headers=headers, count=_LARGE_EACH)
    started = time.monotonic()
    with Load(*[user] * _LARGE_CONNECTIONS) as load:
        load.wait()
    return {
        "statuses": _counts(load.statuses),
        "seconds": time.monotonic() - started,
        "ended": server.process.poll() is not None,
    }


def stopped(server: Server, _: Peer) -> dict[str, Any]:
    """SIGTERM with 20 requests in flight, from clients that keep their connections."""
    with _users(server, _IN_FLIGHT) as load:
        time.sleep(1)
        os.kill(server.process.pid, signal.SIGTERM)
        started = time.monotonic()
        exit_code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            exit_code = server.process.wait(40)
        seconds = time.monotonic() - started
    statuses = load.statuses
    return {
        "sent": len(load.outcomes) - statuses[REFUSED],
        "failed": _failed(load) - statuses[REFUSED],
        "statuses": _counts(statuses),
        "exit_code": exit_code,
        "seconds": seconds,
    }


def _failed(load: Load) -> int:
    return len(load.outcomes) - load.statuses[200]


def _counts(statuses: Counter[int]) -> dict[str, int]:
    """By status; JSON's keys are texts."""
    names = {LOST: "lost", REFUSED: "refused"}
    return {names.get(status, str(status)): count for status, count in sorted(statuses.items())}
