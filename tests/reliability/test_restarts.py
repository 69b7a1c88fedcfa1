"""The server is stopped and started again and again, under clients of every kind."""

import json
import signal
import statistics
import time
from pathlib import Path

from loadtest.servers import wait_until
from loadtest.traffic import LOST, REFUSED, Load, keep_alive, of_status
from tests.reliability.record import Section, scaled
from tests.serving import ROOT, serving

RESTARTS = scaled(2, 10)
SEVEN = (ROOT / "samples" / "seven.png").read_bytes()
DOCUMENT = json.dumps({"instances": [[[7] * 28] * 28] * 300}).encode()
LARGE = DOCUMENT[:-1] + b" " * ((1 << 20) - len(DOCUMENT)) + b"}"
LONG = json.dumps({"instances": [[0, 1]] * 1024}).encode()  # its answer has 100 kB
SECTION = Section(
    30,
    "Restarts under load",
    f"""{RESTARTS} in a row: SIGTERM, and the server is started again when it has ended, while 24
clients go on: eight keep-alive ones that send 10 ms after each answer, four that idle for 0.3 s,
four with a connection a request, two that send 1 MiB, two that take a second to send that, and four
that take a second to read an answer of 100 kB. While no server runs, clients cannot connect and try
again each 10 ms. *Refused* are mostly requests that came while the models were loading. *Without
answers* is the time from the signal to the first prediction of the next server. The case fails if a
request is lost, or if a server does not say that it answered every request.""",
)


def test_no_restart_loses_a_request(store: Path) -> None:
    with serving(store, DRAIN_GRACE_SECONDS="0.5") as server:
        mnist, xor = server.url("mnist"), server.url("xor")
        users = [
            *(keep_alive(mnist, [SEVEN], idle=0.01) for _ in range(8)),
            *(keep_alive(mnist, [SEVEN], idle=0.3) for _ in range(4)),
            *(keep_alive(mnist, [SEVEN], idle=0.01, one_connection=False) for _ in range(4)),
            *(keep_alive(mnist, [LARGE], idle=0.1) for _ in range(2)),
            *(keep_alive(mnist, [LARGE], idle=0.1, pause=0.1) for _ in range(2)),
            *(keep_alive(xor, [LONG], idle=0.1, read_pause=0.1) for _ in range(4)),
        ]
        away, drains = [], []
        with Load(*users) as load:
            for _ in range(RESTARTS):
                before = load.statuses[200]
                wait_until(lambda before=before: load.statuses[200] > before + 500)  # type: ignore[misc]
                stopped = time.monotonic()
                server.process.send_signal(signal.SIGTERM)
                assert server.wait(60) == 0
                drains.append(time.monotonic() - stopped)
                assert server.last_line.startswith("stopped: every request was answered (")
                seen, started = len(load.outcomes), time.monotonic()
                server.start()
                server.wait_until_ready(300)

                def answers(seen: int = seen, started: float = started) -> list[float]:
                    good = of_status(load.outcomes[seen:], 200)
                    return [o.sent + o.seconds for o in good if o.sent > started]

                away.append(min(wait_until(answers)) - stopped)
    print([outcome for outcome in load.outcomes if outcome.status == LOST][:5])
    SECTION.record(
        {
            "what": f"{RESTARTS} restarts",
            "sent": len(load.outcomes) - load.statuses[REFUSED],
            "lost": load.statuses[LOST],
            "refused": load.statuses[503],
            "no connection": load.statuses[REFUSED],
            "a stop, median s": statistics.median(drains),
            "without answers, median s": statistics.median(away),
        }
    )
    assert load.statuses[LOST] == 0
    assert set(load.statuses) <= {200, 503, REFUSED}
