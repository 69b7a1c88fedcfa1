"""What can be reached, from where, and what an archive or a path may do."""

import contextlib
import ctypes
import hashlib
import io
import itertools
import json
import os
import socket
import stat
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import grpc
import pytest
import requests
import torch

from handler.card import CARD_FILE, TORCHSCRIPT_FILE, ModelCard
from handler.scripted import ScriptedModel
from loadtest.servers import free_ports
from server.store import StoreError, read_archive
from tests.archives import altered
from tests.deploy.programs import unavailable
from tests.reliability.wire import Answer, ask, port_of, request
from tests.serving import ROOT, ServerProcess, serving

XOR = b'{"instances": [[0, 1]]}'
_CLONE_NEWNET = 0x40000000


# --- From another network namespace.


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Have this thread, and the processes that it starts, be in a network namespace."""
    with (
        Path("/proc/thread-self/ns/net").open() as before,
        Path(f"/run/netns/{namespace}").open() as there,
    ):
        _enter(there)
        try:
            yield
        finally:
            _enter(before)


def _enter(namespace: IO[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace.fileno(), _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a wire between them: 10.0.0.1 of the server, 10.0.0.2 outside."""
    names = tuple(f"doors-{os.getpid()}-{side}" for side in ("in", "out"))
    server, outside = names

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
        except (OSError, subprocess.CalledProcessError):
            unavailable("network namespaces need root, iproute2 and a kernel that has them")
        ip("-n", server, "link", "add", "wire", "type", "veth", "peer", "wire", "netns", outside)
        for number, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.0.0.{number}/24", "dev", "wire")
            for device in ("wire", "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield server, outside
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def listening_ports() -> set[int]:
    """Every TCP port on which anything listens in this thread's network namespace."""
    ports = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == "0A":  # TCP_LISTEN
                ports.add(int(local.rpartition(":")[2], 16))
    return ports


def accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize("is_open", [False, True])
def test_from_another_machine_only_what_was_opened_is_there(
    store: Path, namespaces: tuple[str, str], is_open: bool
) -> None:
    """TorchServe's gRPC ports, which cannot be turned off, are on loopback in both cases."""
    within, outside = namespaces
    names = ("INFERENCE_ADDRESS", "TELEMETRY_ADDRESS", "GRPC_ADDRESS")
    ports = free_ports(3)
    host = "0.0.0.0" if is_open else "127.0.0.1"
    addresses = {name: f"http://{host}:{port}" for name, port in zip(names, ports, strict=True)}
    with inside(within), serving(store, "xor", **addresses) as server:
        inner = listening_ports()
        assert len(inner) == len(ports) + 2, "and TorchServe's own two"
        for name in ("udp", "udp6"):
            assert len(Path(f"/proc/thread-self/net/{name}").read_text().splitlines()) == 1
        with inside(outside):
            reached = {port for port in inner if accepts("10.0.0.1", port)}
            assert reached == (set(ports) if is_open else set())
            if is_open:
                url = f"http://10.0.0.1:{ports[0]}/predictions/xor"
                assert requests.post(url, data=XOR, timeout=60).status_code == 200
                reload = f"http://10.0.0.1:{ports[1]}/reload"
                assert requests.post(reload, timeout=60).status_code == 401
        assert server.metric("serving_reloads_total") == 0


# --- Through the door.


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[ServerProcess]:
    with serving(store, GRPC_ADDRESS=f"http://127.0.0.1:{free_ports(1)[0]}") as running:
        yield running


MANAGEMENT = [
    *("/models", "/models/xor", "/models?url=http://127.0.0.1:9/evil.mar", "/models/xor/1.0"),
    *("/models?url=file:///etc/passwd", "/models?url=../../evil.mar&model_name=evil"),
    *("/ping", "/metrics", "/api-description", "/workflows", "/workflows?url=x.war", "/token"),
    *("/wfpredict/xor", "/predictions/../models", "/predictions/xor/../../models"),
    *("/predictions/..%2fmodels", "/predictions/%2e%2e/models", "/predictions/xor%2f..%2fmodels"),
    *("/v1/models/..%2f..%2fmodels", "/v1/models/..%2f", "/v2/models/..%2fxor/infer", "//models"),
    *("/v2/models/xor/versions/..%2f..%2f..%2fmodels/infer", "/invocations", "/%6dodels"),
]


@pytest.mark.parametrize("path", MANAGEMENT)
def test_nothing_of_torchserve_is_reachable_but_predictions(
    server: ServerProcess, path: str
) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        (answer,) = ask(port_of(server.inference), request(path, b"", method=method))
        assert isinstance(answer, Answer)
        assert answer.status in (404, 405), (method, answer)
        assert json.loads(answer.body)["code"] == answer.status
    assert set(json.loads(server.probe("/readyz")[1])["models"]) == {"mnist", "xor"}


@pytest.mark.parametrize("service", ["management", "inference"])
def test_the_management_api_has_no_way_in_by_grpc(server: ServerProcess, service: str) -> None:
    method = f"org.pytorch.serve.grpc.{service}.ManagementAPIsService/RegisterModel"
    address = server._environment["GRPC_ADDRESS"].removeprefix("http://")
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{method}")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"\x2a\x19http://127.0.0.1:9/e.mar", timeout=30)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    "path",
    [
        *("/static/../page.py", "/static/..%2fpage.py", "/static/%2e%2e/%2e%2e/etc/passwd"),
        *("/static/..%5c..%5cpage.py", "/docs/../control.py", "/docs/..%2f..%2fcontrol.py"),
        *("/static//etc/passwd", "/docs//etc/passwd", "/docs/%2fetc%2fpasswd", "/static/%00"),
        *("/static/....//page.py", "/static/%c0%ae%c0%ae/page.py", "/static/%252e%252e/page.py"),
    ],
)
def test_no_path_leads_out_of_the_files_of_the_page(server: ServerProcess, path: str) -> None:
    (answer,) = ask(port_of(server.inference), request(path, b"", method="GET"))
    assert isinstance(answer, Answer)
    assert answer.status in (400, 404), answer
    assert not {b"root:", b"import "} & {answer.body[:5], answer.body[:7]}
    assert json.loads(answer.body)["code"] == answer.status


# --- Archives.


@pytest.mark.parametrize(
    "name", ["../evil.py", "a/../../evil.py", "/tmp/evil.py", "..\\evil.py", "a/../b", "C:\\evil"]
)
def test_an_archive_whose_files_lead_out_of_it(store: Path, tmp_path: Path, name: str) -> None:
    file = altered(store / "xor.mar", tmp_path / "evil.mar", {})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"evil")
    with pytest.raises(StoreError, match=r"evil.mar is corrupt: .* leads out of the archive"):
        read_archive(file)


def test_an_archive_with_a_link(store: Path, tmp_path: Path) -> None:
    file = altered(store / "xor.mar", tmp_path / "evil.mar", {})
    link = zipfile.ZipInfo("link")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(StoreError, match="link leads out of the archive"):
        read_archive(file)


def pickled(command: str) -> bytes:
    """A pickle that runs a command in whoever loads it with `pickle`."""
    return b"cposix\nsystem\n(S'" + command.encode() + b"'\ntR."


def malicious(torchscript: bytes, command: str, where: str) -> bytes:
    """TorchScript in which one file is such a pickle."""
    old, new = zipfile.ZipFile(io.BytesIO(torchscript)), io.BytesIO()
    root = old.namelist()[0].partition("/")[0]
    with zipfile.ZipFile(new, "w") as archive:
        for name in old.namelist():
            archive.writestr(
                name, pickled(command) if name == f"{root}/{where}" else old.read(name)
            )
        if where.startswith("extra/"):
            archive.writestr(f"{root}/{where}", pickled(command))
    return new.getvalue()


@pytest.fixture(params=["data.pkl", "constants.pkl", "a pickle of torch.save", "a plain pickle"])
def weights(request: pytest.FixtureRequest, store: Path, tmp_path: Path) -> Iterator[bytes]:
    """TorchScript that would create a file `run` if anything in it were unpickled at will."""
    with zipfile.ZipFile(store / "xor.mar") as archive:
        torchscript = archive.read(TORCHSCRIPT_FILE)
    command = f"touch {tmp_path / 'run'}"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (command,)

    if request.param == "a plain pickle":
        yield pickled(command)
    elif request.param == "a pickle of torch.save":
        buffer = io.BytesIO()
        torch.save(Evil(), buffer)
        yield buffer.getvalue()
    else:
        yield malicious(torchscript, command, request.param)
    assert not (tmp_path / "run").exists()


def with_weights(store: Path, file: Path, weights: bytes) -> ModelCard:
    """An archive of xor with other weights, whose card vouches for them."""
    card = read_archive(store / "xor.mar").card
    assert card
    card = replace(card, torchscript_sha256=hashlib.sha256(weights).hexdigest())
    changes = {TORCHSCRIPT_FILE: weights, CARD_FILE: card.to_json().encode()}
    altered(store / "xor.mar", file, changes)
    return card


def test_weights_are_not_unpickled(store: Path, tmp_path: Path, weights: bytes) -> None:
    card = with_weights(store, tmp_path / "xor.mar", weights)
    (tmp_path / TORCHSCRIPT_FILE).write_bytes(weights)
    with pytest.raises(RuntimeError):
        ScriptedModel(tmp_path, card, None)


def test_such_an_archive_is_refused(store: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(store / "xor.mar") as archive:
        torchscript = archive.read(TORCHSCRIPT_FILE)
    evil = tmp_path / "evil"
    evil.mkdir()
    command = f"touch {tmp_path / 'run'}"
    with_weights(store, evil / "xor.mar", malicious(torchscript, command, "data.pkl"))
    with ServerProcess(evil) as server:
        assert server.wait(120) == 1
        assert "model xor failed to load" in server.last_line
    assert not (tmp_path / "run").exists()


def test_the_pickle_of_these_tests_works(tmp_path: Path) -> None:
    import pickle

    pickle.loads(pickled(f"touch {tmp_path / 'run'}"))
    assert (tmp_path / "run").exists()


# --- Secrets.


def test_secrets_are_in_no_log(store: Path, tmp_path: Path) -> None:
    good, bad = "good-secret-4711", "bad-secret-0815"
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{hashlib.sha256(good.encode()).hexdigest()} name\n")
    grpc_port = free_ports(1)[0]
    environment = {
        "TOKEN_FILE": str(tokens),
        "ACCESS_LOG": "all",
        "GRPC_ADDRESS": f"http://127.0.0.1:{grpc_port}",
        "RATE_LIMIT": "1000",
    }
    with serving(store, "xor", **environment) as server:
        for token, path in itertools.product(
            (good, bad),
            (
                "/predictions/xor",
                "/v1/models",
                "/v2/models/xor/infer",
                "/nowhere",
                "/predictions/y",
            ),
        ):
            for headers in ({"Authorization": f"Bearer {token}"}, {"Authorization": token}):
                url = f"{server.inference}{path}?token={token}"
                for body in (XOR, b"{"):
                    requests.post(url, data=body, headers=headers, timeout=60)
            ask(
                port_of(server.inference),
                b"X /%s\r\nAuthorization: Bearer %s\r\n\r\n" % (b"", token.encode()),
            )
            with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
                call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
                with contextlib.suppress(grpc.RpcError):
                    call(b"x", timeout=30, metadata=[("authorization", f"Bearer {token}")])
            headers = {"Authorization": f"Bearer {token}"}
            requests.post(f"{server.telemetry}/livez?token={token}", headers=headers, timeout=60)
        assert server.output.count('"status": 401') > 5, "the access log"
        secrets = [good.encode(), bad.encode()]
        looked = 0
        for file in filter(Path.is_file, server.temporary.rglob("*")):
            content = file.read_bytes()
            assert not [secret for secret in secrets if secret in content], file
            looked += 1
        assert looked > 10
        for process in server.family():
            lines = " ".join([*process.cmdline(), *process.environ().values()])
            assert good not in lines
        metrics = requests.get(f"{server.telemetry}/metrics", timeout=60).text
        assert good not in metrics
        (directory,) = server.temporary.glob("serve-*")
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        (token_map,) = directory.glob("door-*/tokens.map")
        assert stat.S_IMODE(token_map.stat().st_mode) == 0o600
    assert not (ROOT / "key_file.json").exists(), "TorchServe's own tokens"
