"""The benchmark: its arithmetic, its report, and wrk against a server that misbehaves."""

import dataclasses
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from bench import door, report, wrk
from bench.__main__ import main
from bench.errors import BenchError
from bench.measure import Memory, Sample
from bench.servers import NULL, OTHER, SERVICE, STOCK, OtherVersion
from tests.deploy.programs import program
from tests.load.toy_server import Server

SAMPLE = Sample(
    server=SERVICE,
    connections=32,
    round=1,
    rate=800.0,
    failed=0.0,
    p50=0.001,
    p90=0.002,
    p99=0.003,
    p999=0.004,
    steal=0.0,
    foreign=0.0,
    disturbed=False,
    batch=4.0,
    stages={"parse": 10.0},
    cpu=0.5,
)
MEMORY = [Memory(SERVICE, 1, pss=801.0, rss=900.0)]


def sample(**changes: object) -> Sample:
    return dataclasses.replace(SAMPLE, **changes)  # type: ignore[arg-type]


class TestReport:
    def test_ratios_are_of_one_round_and_of_undisturbed_ones(self) -> None:
        rates = ((1, 800.0), (2, 400.0), (3, 1e6), (4, 500.0))
        samples = [
            *(sample(round=n, rate=rate, disturbed=n == 3) for n, rate in rates),
            *(sample(round=n, rate=1000.0, server=NULL) for n in (1, 2, 3)),
        ]
        assert report.target_ratios(samples, report.TARGETS[0]) == [0.8, 0.4]

    def test_names_missed_targets_and_disturbed_rounds(self) -> None:
        samples = [
            sample(),
            sample(server=NULL, rate=1000.0),
            sample(server=STOCK, rate=100.0, failed=0.25),
            sample(server=STOCK, rate=1.0, round=2, foreign=0.5, disturbed=True),
        ]
        text = report.text(samples, MEMORY, {"processor": "abacus"})
        assert "- processor: abacus" in text
        assert "not disturbed, 3 of 4." in text
        assert "| requests/s ÷ null handler | 32 | ≥ 0.75 | 0.8 (0.8 to 0.8) | reached |" in text
        assert "| requests/s ÷ stock | 32 | ≥ 35 | 8 (8 to 8) | MISSED |" in text
        assert "| memory (PSS), MiB |  | ≤ 800 | 801 (801 to 801) | MISSED |" in text
        assert "100 (100 to 100), 25% failed" in text
        assert "- round 2, stock image handler, 32 connections: 1 requests/s" in text
        assert OTHER not in text

    def test_server_of_which_every_round_was_disturbed(self) -> None:
        assert "every round was disturbed" in report.text([sample(disturbed=True)], MEMORY, {})

    def test_other_version(self) -> None:
        """Ratios are of the same round: of 3 rounds each twice as fast as the one before, 0.5."""
        samples = [
            sample(round=n, server=server, connections=connections, rate=rate * 2.0**n, p50=rate)
            for n in (1, 2, 3)
            for connections in (1, 32)
            for server, rate in ((SERVICE, 100.0), (OTHER, 200.0))
        ]
        memory = [
            Memory(server, n, pss=pss + n, rss=pss)
            for n in (1, 2, 3)
            for server, pss in ((SERVICE, 600.0), (OTHER, 500.0))
        ]
        text = report.text(samples, memory, {})
        rates = "400 (200 to 800) | 800 (400 to 1,600) | 0.5 (0.5 to 0.5)"
        assert f"| requests/s | 32 | {rates} |" in text
        assert "| requests/s | 128 |" not in text
        assert "| p50 ms | 1 |" in text
        assert "| PSS MiB |  | 602 (601 to 603) | 502 (501 to 503) | 1.2 (1.2 to 1.2) |" in text

    @pytest.mark.parametrize("disturbed", [False, True])
    def test_plot(self, disturbed: bool) -> None:
        samples = [sample(connections=n, disturbed=disturbed) for n in (1, 8, 32, 128)]
        assert report.plot(samples).startswith("<svg")


class TestLoad:
    def test_only_error_responses_are_taken_from_the_responses(self) -> None:
        """wrk counts whole responses; broken connections are not among them."""
        load = wrk.Load(100, 10, 25, seconds=2.0, p50=0, p90=0, p99=0, p999=0)
        assert load.rate == 45
        assert load.failed == 35 / 125


class Misbehaving(BaseHTTPRequestHandler):
    """Answers its requests in turn by what `plan` says: a status, or 0 for a broken connection."""

    protocol_version = "HTTP/1.1"
    plan: tuple[int, ...] = (200,)
    seconds = 0.0
    sent: list[int]
    lock = threading.Lock()
    ended = threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.ended.wait(self.seconds)
        with self.lock:
            status = self.plan[len(self.sent) % len(self.plan)]
            self.sent.append(status)
        if not status:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


class TestWrk:
    """wrk itself: what its script reports is what the server did."""

    @pytest.fixture
    def url(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        program("wrk")
        monkeypatch.setattr(Misbehaving, "sent", [], raising=False)
        monkeypatch.setattr(Misbehaving, "ended", threading.Event())
        with Server(("127.0.0.1", 0), Misbehaving) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_address[1]}"
            Misbehaving.ended.set()
            server.shutdown()
            thread.join()

    def load(self, url: str, seconds: int) -> wrk.Load:
        return wrk.run(url, wrk.Request(), 2, seconds)

    def test_error_responses_and_broken_connections(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Misbehaving, "plan", (200, 200, 503, 0))
        load = self.load(url, seconds=1)
        # At the end one request a connection may be under way.
        sent = Misbehaving.sent
        assert load.rate * load.seconds == pytest.approx(sent.count(200), abs=2)
        assert load.error_responses == pytest.approx(sent.count(503), abs=2)
        assert load.broken == pytest.approx(sent.count(0), abs=2)
        assert load.failed == pytest.approx(0.5, abs=0.1)

    def test_response_after_more_than_the_default_timeout(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """wrk's default is 2 s; a response after that is a response, and in the percentiles."""
        monkeypatch.setattr(Misbehaving, "seconds", 2.2)
        load = self.load(url, seconds=3)
        assert load.rate * load.seconds == pytest.approx(2)
        assert load.failed == 0
        assert load.p50 > 2.1

    def test_no_response(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Misbehaving, "seconds", 60)
        with pytest.raises(BenchError, match="did not respond within 1 s"):
            self.load(url, seconds=1)

    def test_no_server(self) -> None:
        program("wrk")
        with pytest.raises(BenchError, match="wrk failed: unable to connect"):
            self.load("http://127.0.0.1:1", seconds=1)


class TestDoor:
    """Of the front door alone, in front of a stand-in for TorchServe."""

    def test_measures_every_variant_in_every_round(self) -> None:
        program("wrk")
        variants = {"no retry-on": door.VARIANTS["no retry-on"]}
        samples = door.measure(variants, connections=[1, 2], rounds=1, seconds=1)
        assert [(s.variant, s.connections) for s in samples] == [("no retry-on", n) for n in (1, 2)]
        assert all(1 < time < 10_000 for s in samples for time in (s.base, s.own))

    def test_a_door_that_answers_something_else(self) -> None:
        with pytest.raises(BenchError, match="closed: expected status 200, got 404"):
            door.measure({"closed": [("acl is_known .*", "acl is_known always_false")]}, [1], 1, 1)

    def test_a_configuration_that_haproxy_refuses(self) -> None:
        with pytest.raises(BenchError, match="unknown keyword 'nbthreads'"):
            door.measure({"odd": [("nbthread", "nbthreads")]}, [1], 1, 1)

    def test_differences_are_of_one_pair(self) -> None:
        """Each pair is slower than the one before."""
        text = door.text(
            [door.Sample("other", 32, 20.0 + 100 * n, 17.0 + 100 * n) for n in (1, 2, 3)]
        )
        assert "| as it is | 220.0 (120.0 to 320.0) |  |" in text
        assert "| other | 217.0 (117.0 to 317.0) | -3.0 (-3.0 to -3.0) |" in text


class TestOtherVersion:
    @pytest.mark.parametrize("module", ["server", "handler"])
    def test_is_started_with_its_own_code_and_archives(self, tmp_path: Path, module: str) -> None:
        """A stand-in for a checkout shows what it is started with, and ends."""
        package = tmp_path / module
        package.mkdir()
        (package / "__main__.py").write_text(
            "import os, sys\n"
            f"import {module}\n"
            f"sys.exit(' '.join([*{module}.__path__, os.getcwd(), *sys.argv[1:]]))\n"
        )
        store = tmp_path / "model_store"
        store.mkdir()
        for name in ("mnist", "xor"):
            (store / f"{name}.mar").touch()
        shown = f"{package} {tmp_path} --model-store {store}"
        with pytest.raises(RuntimeError, match=shown), OtherVersion(tmp_path):
            pass

    def test_directory_that_is_not_a_checkout(self, tmp_path: Path) -> None:
        with pytest.raises(BenchError, match="neither server/ nor handler/"):
            OtherVersion(tmp_path)

    def test_checkout_without_archives(self, tmp_path: Path) -> None:
        (tmp_path / "server").mkdir()
        with pytest.raises(BenchError, match="model_store has no mnist"):
            OtherVersion(tmp_path)


class TestCommand:
    @pytest.mark.parametrize("has_wrk", [True, False])
    def test_names_what_is_missing(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        has_wrk: bool,
    ) -> None:
        monkeypatch.setattr(shutil, "which", lambda _: "/bin/wrk" if has_wrk else None)
        assert main(["--model-store", str(tmp_path)]) == 1
        expected = "run `make train`" if has_wrk else "wrk is not installed"
        assert expected in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--seconds", "0"], "expected an integer over 0"),
            (["--servers", "nothing"], "invalid choice: 'nothing'"),
            (["--servers", "null", "--beside", "."], "add it to --servers"),
        ],
    )
    def test_wrong_usage(
        self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
