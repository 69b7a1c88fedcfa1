import dataclasses
import shutil
from pathlib import Path

import pytest

from bench.__main__ import NULL, SERVICE, STOCK, TARGETS, Sample, main, ratios, report

SAMPLE = Sample(
    server=SERVICE,
    connections=32,
    round=1,
    rate=800.0,
    refused=0.0,
    p50=0.001,
    p90=0.002,
    p99=0.003,
    p999=0.004,
    steal=0.0,
    foreign=0.0,
    batch=4.0,
    stages={"parse": 10.0},
)
MEMORY = {SERVICE: {"pss": 801.0, "rss": 900.0}}


def sample(**changes: object) -> Sample:
    return dataclasses.replace(SAMPLE, **changes)  # type: ignore[arg-type]


def test_a_ratio_is_of_one_round_and_of_undisturbed_ones() -> None:
    samples = [
        *(sample(round=n, rate=rate) for n, rate in ((1, 800.0), (2, 400.0), (3, 1e6), (4, 500.0))),
        *(sample(round=n, rate=1000.0, server=NULL) for n in (1, 2, 3)),
    ]
    samples[2] = dataclasses.replace(samples[2], steal=0.2)
    assert ratios(samples, TARGETS[0]) == [0.8, 0.4]


def test_a_report_names_what_was_missed_and_what_was_left_out() -> None:
    samples = [
        sample(),
        sample(server=NULL, rate=1000.0),
        sample(server=STOCK, rate=100.0, refused=0.25),
        sample(server=STOCK, rate=1.0, round=2, foreign=0.5),
    ]
    text = report(samples, MEMORY, {"processor": "abacus"})
    assert "- processor: abacus" in text
    assert "not disturbed, 3 of 4." in text
    assert "| requests/s ÷ null handler | 32 | ≥ 0.75 | 0.8 (0.8 to 0.8) | reached |" in text
    assert "| requests/s ÷ stock | 32 | ≥ 35 | 8 (8 to 8) | MISSED |" in text
    assert "| memory (PSS), MiB | | ≤ 800 | 801 | MISSED |" in text
    assert "100 (100 to 100), and 25% refused" in text
    assert "- round 2, stock image handler, 32 connections: 1 requests/s" in text


def test_a_server_of_which_every_round_was_disturbed() -> None:
    assert "every round was disturbed" in report([sample(steal=1.0)], MEMORY, {})


@pytest.mark.parametrize("has_wrk", [True, False])
def test_what_is_missing_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    has_wrk: bool,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/wrk" if has_wrk else None)
    assert main(["--model-store", str(tmp_path)]) == 1
    assert ("run `make train`" if has_wrk else "wrk is not installed") in capsys.readouterr().err
