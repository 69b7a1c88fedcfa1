"""300 connections with bodies of 1 MiB: once they ended the JVM, and with it every request."""

import json
from pathlib import Path

from loadtest.traffic import Load, describe, keep_alive
from tests.serving import ROOT, serving

SEVEN = (ROOT / "samples" / "seven.png").read_bytes()
DOCUMENT = json.dumps({"instances": [[[7] * 28] * 28] * 300}).encode()
BODY = DOCUMENT[:-1] + b" " * ((1 << 20) - len(DOCUMENT)) + b"}"


def test_every_request_is_answered_or_refused(store: Path) -> None:
    assert len(BODY) == 1 << 20
    with serving(store, TS_DEFAULT_WORKERS_PER_MODEL="2") as server:
        url = server.url("mnist")
        users = [keep_alive(url, [BODY], count=3) for _ in range(300)]
        with Load(keep_alive(url, [SEVEN], idle=0.02)) as neighbour, Load(*users) as attack:
            attack.wait()
        print("\nattack", describe(attack), "\nneighbour", describe(neighbour))
        assert len(attack.outcomes) == 900
        assert set(attack.statuses) <= {200, 503}
        assert attack.statuses[200]
        assert set(neighbour.statuses) == {200}
        assert server.probe("/readyz")[0] == 200
        assert server.metric("serving_torchserve_starts_total") == 1
        total = len(attack.outcomes) + len(neighbour.outcomes)
        assert server.metric("serving_responses_total", model="mnist") == total
