"""A stop under keep-alive clients, half-sent bodies and slow readers loses no request."""

import signal
import socket
from pathlib import Path

import pytest

from loadtest.servers import wait_until
from loadtest.traffic import LOST, REFUSED, Load, describe, keep_alive
from tests.archives import SLOW_HANDLER, foreign
from tests.serving import ROOT, serving

SEVEN = (ROOT / "samples" / "seven.png").read_bytes()
LARGE = b'{"instances": [' + b",".join([b"[0, 1]"] * 1000) + b"]" + b" " * 200_000 + b"}"


@pytest.mark.parametrize("models", ["ready", "loading"])
def test_sigterm_under_keep_alive_clients(store: Path, models: str) -> None:
    """32 clients, half of them idle for a second at a time, and eight slow senders."""
    with serving(store, DRAIN_GRACE_SECONDS="1") as server:
        if models == "loading":
            # The door that a reload left behind still has its connections.
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: server.metric("serving_torchserve_starts_total") == 2)
        busy = [keep_alive(server.url("mnist"), [SEVEN]) for _ in range(16)]
        idle = [keep_alive(server.url("mnist"), [SEVEN], idle=1.0) for _ in range(16)]
        slow = [keep_alive(server.url("xor"), [LARGE], pause=0.05) for _ in range(8)]
        with Load(*busy, *idle, *slow) as load:
            wait_until(lambda: len(load.outcomes) > 200)
            server.process.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        print(describe(load), [o for o in load.outcomes if o.status == LOST])
        assert load.statuses[LOST] == 0
        assert set(load.statuses) <= {200, 503, REFUSED}
        assert load.statuses[503] < len(load.outcomes) / 10
        answered = load.statuses[200] + load.statuses[503]
        assert server.last_line == f"stopped: every request was answered ({answered:,})"


def test_a_slow_reader_and_half_sent_headers_are_awaited(store: Path) -> None:
    with serving(store, "xor", DRAIN_GRACE_SECONDS="0") as server:
        address = ("127.0.0.1", int(server.inference.rpartition(":")[2]))
        head = f"POST /predictions/xor HTTP/1.1\r\nHost: a\r\nContent-Length: {len(LARGE)}\r\n"
        with socket.create_connection(address) as reader, socket.create_connection(address) as late:
            reader.sendall(head.encode() + b"\r\n" + LARGE)
            late.sendall(head.encode())
            assert reader.recv(1) == b"H"
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "draining" in server.probe("/readyz")[1])

            def is_closed() -> bool:
                try:
                    socket.create_connection(address).close()
                except ConnectionRefusedError:
                    return True
                return False

            wait_until(is_closed)
            late.sendall(b"\r\n" + LARGE)
            for client in (reader, late):
                answer = b""
                while part := client.recv(1000):  # until it is closed
                    answer += part
                assert answer.endswith(b"}]}")
        assert server.wait(60) == 0
        # The connections of `is_closed` count as requests that were malformed.
        assert server.last_line.startswith("stopped: every request was answered (")


def test_what_was_not_answered_is_said(tmp_path: Path) -> None:
    foreign(tmp_path, "slow", SLOW_HANDLER.format(seconds=30))
    with serving(tmp_path, DRAIN_GRACE_SECONDS="0", DRAIN_TIMEOUT_SECONDS="1") as server:
        with Load(*[keep_alive(server.url("slow"), [b"x"], count=1) for _ in range(2)]) as load:
            wait_until(lambda: server.accepted() == 2)
            server.process.send_signal(signal.SIGTERM)
            assert server.wait(60) == 1
            load.wait()
        assert load.statuses == {LOST: 2}
        assert server.last_line.endswith("; 0 of 2 requests were answered")
