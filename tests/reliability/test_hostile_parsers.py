"""Parsers meet what atheris has found so far, and look for more."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.reliability.fuzz import CORPUS, TARGETS
from tests.reliability.record import DIRECTORY, Section, scaled
from tests.serving import ROOT

SECTION = Section(
    51,
    "Parsers",
    "Each parser takes any bytes and raises nothing but what it documents. atheris, which sees "
    "what code an input reaches, begins with the corpus in this repository and changes it.",
)


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus(target: str) -> None:
    run = TARGETS[target]()
    files = sorted((CORPUS / target).iterdir())
    assert len(files) > 10
    for file in files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of metadata
            run(file.read_bytes())


def test_the_corpus_is_small() -> None:
    assert sum(file.stat().st_size for file in CORPUS.rglob("*") if file.is_file()) < 1 << 20


@pytest.mark.parametrize("target", TARGETS)
def test_atheris_finds_nothing(target: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    runs = scaled(500, 5_000) if target == "picture" else scaled(2_000, 50_000)
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    options = [f"-runs={runs}", "-seed=1", "-max_len=6000", "-timeout=60"]
    options += [f"-artifact_prefix={DIRECTORY}/{target}-"]
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "tests.reliability.fuzz", target),
            *(str(tmp_path), str(CORPUS / target), *options),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert f"Done {runs} runs" in done.stderr
    SECTION.record({"parser": target, "inputs": runs, "failed": 0})
