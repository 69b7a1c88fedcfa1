import importlib.util
import itertools
import os
import resource
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.door import VARIANTS, edited
from bench.errors import BenchError
from server import door
from server.door import COPIES, MAX_BODY, SMALL_BODY, DoorError, Route, read_tokens, render, routes
from server.settings import Address, Settings, load_settings
from server.store import Archive
from tests.serving import ROOT
from tests.tls import make_certificate

ROUTES = [Route("mnist", "2.0", ("2.0", "1.0"), 256, 4), Route("xor", "1.0", ("1.0",), 128, 2)]


def archive(name: str, version: str = "1.0", batch_size: int = 64) -> Archive:
    return Archive(Path(f"{name}-{version}.mar"), name, version, None, batch_size, "")


class TestRoutes:
    def test_two_batches_and_two_large_bodies_for_each_worker(self) -> None:
        archives = [archive("mnist"), archive("xor", batch_size=1)]
        assert routes(archives, {"mnist/1.0": 2, "xor/1.0": 1}, 512 << 20) == [
            Route("mnist", "1.0", ("1.0",), small=256, large=4),
            Route("xor", "1.0", ("1.0",), small=2, large=2),
        ]

    def test_versions_of_a_model_share_its_slots(self) -> None:
        archives = [archive("m", "2.0"), archive("m", "1.0", batch_size=8)]
        (route,) = routes(archives, {"m/2.0": 1, "m/1.0": 3}, 512 << 20)
        assert route == Route("m", "2.0", ("2.0", "1.0"), small=2 * 64 + 2 * 3 * 8, large=8)

    @pytest.mark.parametrize("heap", [64 << 20, 512 << 20, 4 << 30])
    @pytest.mark.parametrize("workers", [1, 16, 200])
    @pytest.mark.parametrize("models", [1, 2, 8])
    def test_the_heap_holds_every_copy_of_every_body(
        self, heap: int, workers: int, models: int
    ) -> None:
        """With the heap and workers of config.properties, a small heap, and many more workers."""
        archives = [archive(f"m{number}") for number in range(models)]
        ways = routes(archives, {each.key: workers for each in archives}, heap)
        assert min(min(way.small, way.large) for way in ways) >= 1
        large = sum(way.large for way in ways) * MAX_BODY * COPIES
        small = sum(way.small for way in ways) * SMALL_BODY * COPIES
        if min(way.large for way in ways) > 1:  # each model needs at least one
            assert large + small <= heap / 2

    def test_the_configured_heap_is_enough(self) -> None:
        settings = load_settings(ROOT / "config.properties", {})
        archives = [archive("mnist"), archive("xor")]
        ways = routes(archives, {"mnist/1.0": 2, "xor/1.0": 1}, settings.heap_bytes)
        assert [(way.small, way.large) for way in ways] == [(256, 4), (128, 2)]
        queue = int(settings.torchserve["job_queue_size"])
        assert queue > max(way.small + way.large for way in ways)
        assert int(settings.torchserve["max_request_size"]) == MAX_BODY


def check(config: str, directory: Path) -> str:
    """HAProxy's complaints about a configuration; empty if it accepts it without a warning."""
    file = directory / "haproxy.cfg"
    file.write_text(config)
    program, environment = door.find_haproxy(directory)
    with (
        socket.socket() as first,
        socket.socket() as second,
        socket.socket(socket.AF_UNIX) as third,
    ):
        for listener in (first, second):
            listener.bind(("127.0.0.1", 0))
        third.bind(str(directory / "internal.sock"))
        for number, listener in enumerate((first, second, third), 1000):
            config = config.replace(f"fd@{number}", f"fd@{listener.fileno()}")
        file.write_text(config)
        done = subprocess.run(
            [str(program), "-c", "-f", str(file)],
            env=environment,
            pass_fds=(first.fileno(), second.fileno(), third.fileno()),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return "".join(line for line in done.stderr.splitlines() if "[WARNING]" in line)


def write(settings: Settings, directory: Path, **values: Any) -> str:
    given: dict[str, Any] = {
        "starting": False,
        "listeners": {"inference": 1000}
        | ({"grpc": 1001, "internal": 1002} if settings.grpc else {}),
        "admin_socket": directory / "a",
        "metrics_socket": directory / "m",
        "control_socket": directory / "c",
        "grpc_socket": directory / "g",
        "inference_socket": directory / "i",
        "grpc_port": 7171 if settings.grpc else None,
        "token_map": None,
    }
    return render(settings, ROUTES, **(given | values))


@pytest.fixture
def settings() -> Settings:
    return load_settings(ROOT / "config.properties", {})


OPTIONS = ("tokens", "rate", "tls", "cors", "grpc", "log")


@pytest.mark.parametrize(
    "chosen",
    [
        *itertools.chain.from_iterable(itertools.combinations(OPTIONS, n) for n in range(3)),
        OPTIONS,
    ],
    ids="+".join,
)
def test_haproxy_accepts_every_combination_of_options(
    settings: Settings, tmp_path: Path, chosen: tuple[str, ...]
) -> None:
    values: dict[str, Any] = {}
    if "tokens" in chosen:
        values["token_map"] = tmp_path / "tokens.map"
        values["token_map"].write_text("0" * 64 + " 1\n")
    if "rate" in chosen:
        settings = replace(settings, rate_limit=5)
    if "tls" in chosen:
        settings = replace(settings, tls_certificate=make_certificate(tmp_path / "cert.pem"))
    if "cors" in chosen:
        settings = replace(settings, cors_origins=("https://a.example", "http://b:8080"))
    if "grpc" in chosen:
        settings = replace(settings, grpc=Address("127.0.0.1", 7070, "GRPC_ADDRESS"))
    if "log" in chosen:
        settings = replace(settings, access_log="errors")
    assert check(write(settings, tmp_path, **values), tmp_path) == ""


@pytest.mark.parametrize("change", [{"access_log": "all"}, {"cors_origins": ("*",)}])
def test_haproxy_accepts_other_values(
    settings: Settings, tmp_path: Path, change: dict[str, Any]
) -> None:
    assert check(write(replace(settings, **change), tmp_path), tmp_path) == ""


def test_haproxy_accepts_the_configuration_before_models_load(
    settings: Settings, tmp_path: Path
) -> None:
    config = write(settings, tmp_path, starting=True, inference_socket=None)
    assert check(config, tmp_path) == ""
    assert "the models are loading" in config


def test_the_check_finds_a_configuration_that_haproxy_refuses(
    settings: Settings, tmp_path: Path
) -> None:
    config = write(settings, tmp_path) + "    no-such-keyword\n"
    with pytest.raises(AssertionError, match="no-such-keyword"):
        check(config, tmp_path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_haproxy_accepts_every_variant_of_the_benchmark(
    settings: Settings, tmp_path: Path, variant: str
) -> None:
    assert check(edited(write(settings, tmp_path), VARIANTS[variant]), tmp_path) == ""


def test_an_edit_that_matches_nothing_is_an_error(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="has nothing like 'nbthread 3'"):
        edited(write(settings, tmp_path), [("nbthread 1", "nbthread 2"), ("nbthread 3", "")])


@pytest.mark.parametrize(
    ("limit", "connections"),
    [(resource.RLIM_INFINITY, 4096), (1 << 20, 4096), (4096, 1984), (1024, 448), (64, 1)],
)
def test_connections_have_files(
    monkeypatch: pytest.MonkeyPatch, limit: int, connections: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert door.max_connections() == connections


def test_tokens(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# of the gateway\n\n{'A' * 64} gateway\n  {'0' * 64}\n")
    assert read_tokens(file) == ["a" * 64, "0" * 64]
    file.write_text("0" * 64 + "\nsecret\n")
    with pytest.raises(DoorError, match="tokens, line 2: expected the SHA-256 of a token"):
        read_tokens(file)
    with pytest.raises(DoorError, match="No such file"):
        read_tokens(tmp_path / "nothing")


class TestProgram:
    def test_chosen_program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program, _ = door.find_haproxy(tmp_path)
        monkeypatch.setenv("HAPROXY", str(program))
        assert door.find_haproxy(tmp_path)[0] == program
        monkeypatch.setenv("HAPROXY", str(tmp_path / "none"))
        with pytest.raises(DoorError, match=r"HAPROXY is set, but .*none is not a program"):
            door.find_haproxy(tmp_path)

    def test_missing_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        with pytest.raises(DoorError, match="no HAProxy: run `make setup`"):
            door.find_haproxy(tmp_path)

    def test_missing_executable_bit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda *_: False)
        program, environment = door.find_haproxy(tmp_path)
        assert program == tmp_path / "haproxy"
        done = subprocess.run(
            [str(program), "-v"], env=environment, capture_output=True, check=True
        )
        assert b"HAProxy version 2.8" in done.stdout
