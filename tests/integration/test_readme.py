"""Runs the README's commands in a copy of the repository, as a new user would."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from loadtest.servers import wait_until
from tests.checkout import copy_repository
from tests.serving import ROOT, free_addresses
from training.data import MNIST_DIR

README = (ROOT / "README.md").read_text()
SHELL_BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
PYTHON_BLOCKS = re.findall(r"`(\S+\.py)`[^`]*\n\n```python\n(.*?)```", README, re.DOTALL)
DEFAULTS = [f"http://127.0.0.1:{port}" for port in (8080, 8081, 8082, 8083)]


CLIENTS = README.partition("## Clients\n")[2].partition("\n## ")[0]


def block(start: str) -> str:
    (found,) = (text for text in SHELL_BLOCKS if text.startswith(start))
    return str(found)


def test_every_shell_block_is_executed_here() -> None:
    executed = ("make serve\n", "make test\n", "curl ", ".venv/bin/python -m training train ")
    assert [text for text in SHELL_BLOCKS if not text.startswith(executed)] == []


class Checkout:
    """A copy of the repository with the environments of the run that contains this test."""

    def __init__(self, directory: Path, store: Path) -> None:
        self.directory = directory
        copy_repository(directory)
        (directory / ".venv").symlink_to(sys.prefix)
        # Made anew they cost `make test` three minutes, and are the same.
        for made in ROOT.glob(".venv-*"):
            (directory / made.name).symlink_to(made)
        for archive in store.glob("*.mar"):
            shutil.copy(archive, directory / "model_store")
        self.addresses = free_addresses()
        # A new user's environment has nothing of the `make test` around this.
        inherited = {
            key: value
            for key, value in os.environ.items()
            if "MAKE" not in key and not key.startswith("COV")
        }
        self.environment = inherited | self.addresses | {"MNIST_DIR": str(ROOT / MNIST_DIR)}

    def run(self, text: str, **environment: str) -> str:
        for default, address in zip(DEFAULTS, self.addresses.values(), strict=True):
            text = text.replace(default, address)
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.directory,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    @contextmanager
    def serve(self) -> Iterator[None]:
        """`make serve` until everything is ready; Ctrl-C at the end."""
        output = self.directory / "output"
        with output.open("w") as file:
            process = subprocess.Popen(
                ["bash", "-c", block("make serve")],
                cwd=self.directory,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

            def is_ready() -> bool:
                assert process.poll() is None, output.read_text()
                try:
                    url = f"{self.addresses['TELEMETRY_ADDRESS']}/readyz"
                    return requests.get(url, timeout=10).status_code == 200
                except requests.ConnectionError:
                    return False

            try:
                wait_until(is_ready, 120)
                yield
            finally:
                os.killpg(process.pid, signal.SIGINT)
                process.wait(60)
        assert "stopped: every request was answered" in output.read_text()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Checkout:
    return Checkout(tmp_path_factory.mktemp("clone"), store)


def test_serve_and_the_requests(checkout: Checkout) -> None:
    with checkout.serve():
        assert '"label": 7' in checkout.run(
            block("curl -T samples/seven.png http://127.0.0.1:8080/predictions")
        )
        xor = checkout.run(block('curl -d \'{"instances": [[0, 0]'))
        assert re.findall(r'"label": (\d)', xor) == ["0", "1", "1", "0"]
        ready = checkout.run(block("curl http://127.0.0.1:8083/readyz"))
        assert '"status":"ready"' in ready
        metrics = checkout.run(block("curl http://127.0.0.1:8083/metrics"))
        assert 'inference_requests_total{code="200",model="xor",version="1.0"}' in metrics
        # The commands that the server prints work when pasted.
        output = checkout.directory / "output"
        # A probe may see that all is ready before the server prints it.
        wait_until(lambda: "Ctrl-C stops" in output.read_text())
        printed = output.read_text()
        (line,) = re.findall(r"^  (curl -T .*)$", printed, re.MULTILINE)
        assert '"label": 7' in checkout.run(line)
        (lines,) = re.findall(r"^  (curl -d .*)$", printed, re.MULTILINE)
        assert re.findall(r'"label": (\d)', checkout.run(lines)) == ["1", "0"]


def test_clients(checkout: Checkout) -> None:
    blocks = re.findall(r"^```python\n(import .*?|from .*?)```", CLIENTS, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    others = ROOT / ".venv-clients" / "bin" / "python"
    address = checkout.addresses["INFERENCE_ADDRESS"].removeprefix("http://")
    with checkout.serve():
        for text in blocks:
            python = sys.executable if "import requests" in text else others
            done = subprocess.run(
                [python, "-W", "ignore", "-c", text.replace("127.0.0.1:8080", address)],
                cwd=checkout.directory,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.stdout.split()[-1:] in (["7"], ["1"]), done.stdout + done.stderr
        explained = checkout.run(block("curl --data-binary @samples/seven.png"))
        assert '"attributions": [[' in explained


def test_make_test(checkout: Checkout) -> None:
    """Only the command: that the tests pass is shown by the run that contains this one."""
    collected = checkout.run(block("make test"), PYTEST_ADDOPTS="--collect-only -q")
    assert "test_readme.py::test_make_test" in collected


def test_training_by_hand(checkout: Checkout) -> None:
    printed = checkout.run(block(".venv/bin/python -m training train mnist"))
    assert "mnist: mlp, " in printed
    assert "artifacts/mlp/mnist.mar: packed mnist 1.0" in printed
    assert (checkout.directory / "artifacts/mlp/mnist.mar").exists()


def test_changed_handler_code_is_packed_before_it_is_served(tmp_path: Path, store: Path) -> None:
    checkout = Checkout(tmp_path, store)
    python = ".venv/bin/python -m training"
    checkout.run(f"{python} train xor && {python} pack xor")
    with (checkout.directory / "handler" / "errors.py").open("a") as file:
        file.write("\n# A remark.\n")
    printed = checkout.run("make models")  # which `make serve` runs first
    assert re.search(r"xor\.mar: packed xor 1\.0, TorchScript \w+: handler code changed", printed)
    assert "mnist.mar: left as it is although handler code changed" in printed
    assert "packed" not in checkout.run("make models")


def test_adding_a_model(checkout: Checkout) -> None:
    for name, text in PYTHON_BLOCKS:
        file = checkout.directory / name
        if file.exists():  # the README shows one line of it
            start = text.partition("(")[0]
            lines = file.read_text().splitlines(keepends=True)
            (index,) = (i for i, line in enumerate(lines) if line.startswith(start))
            lines[index] = text
            file.write_text("".join(lines))
        else:
            file.write_text(text)
    assert [name for name, _ in PYTHON_BLOCKS] == [
        "training/simple.py",
        "handler/simple.py",
        "training/registry.py",
    ]
    mnist = (checkout.directory / "model_store/mnist.mar").read_bytes()
    with checkout.serve():
        answer = checkout.run(block('curl -d \'{"instances": [[1, 1, 1'))
        assert '"model": "simple"' in answer
        assert '"label": 1' in answer
        assert '"label": 7' in checkout.run(
            block("curl -T samples/seven.png http://127.0.0.1:8080/predictions")
        )
    assert (checkout.directory / "model_store/mnist.mar").read_bytes() == mnist
    checkout.run(".venv/bin/python -m ruff check training handler && .venv/bin/python -m mypy")
