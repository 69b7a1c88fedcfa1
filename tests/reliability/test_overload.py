"""More requests than can be answered: what is answered, what is refused, and how soon.

Prints a table; a machine that is busy with other things changes its times, not its counts.
"""

import time
from pathlib import Path

from tests.archives import SLOW_HANDLER, foreign
from tests.reliability.traffic import LOST, Load, of_status, open_loop, percentile
from tests.serving import ServerProcess, serving

# A batch of four takes 50 ms: 80 requests a second, which any generator can send ten times.
CAPACITY = 80.0
SECONDS = 6.0
QUEUE_SECONDS = 0.5


def one(server: ServerProcess, rate: float, seconds: float) -> Load:
    with Load(open_loop(server.url("slow"), b"x", rate, seconds)) as load:
        load.wait()
    return load


def test_goodput_at_1_2_5_and_10_times_the_capacity(tmp_path: Path) -> None:
    foreign(tmp_path, "slow", SLOW_HANDLER.format(seconds=0.05), "batchSize: 4\n")
    with serving(tmp_path, QUEUE_TIMEOUT_SECONDS=f"{QUEUE_SECONDS}") as server:
        one(server, CAPACITY, 2.0)  # the JVM compiles what is hot in the first seconds
        print("\ntimes   sent  lost  answered/s  refused  refusal p99  accepted p50   p99, ms")
        for times in (1, 2, 5, 10):
            load = one(server, times * CAPACITY, SECONDS)
            good = [*of_status(load.outcomes, 200)]
            refused = [*of_status(load.outcomes, 503)]
            assert len(good) + len(refused) == len(load.outcomes)
            assert load.statuses[LOST] == 0
            assert good
            assert bool(refused) == (times > 1) or times == 1
            print(
                f"{times:>5} {len(load.outcomes):>6} {load.statuses[LOST]:>5} "
                f"{len(good) / SECONDS:>11.1f} {len(refused):>8} "
                f"{1e3 * percentile(refused, 0.99):>12.0f} {1e3 * percentile(good, 0.5):>13.0f} "
                f"{1e3 * percentile(good, 0.99):>9.0f}"
            )
        over = time.monotonic()
        after = one(server, CAPACITY / 4, 4.0)
        assert set(after.statuses) == {200}
        slow = [o.sent + o.seconds - over for o in after.outcomes if o.seconds > 0.25]
        print(f"back to under 250 ms {max(slow, default=0.0):.2f} s after the end of the overload")
        total = server.metric("serving_responses_total", model="slow", code="5xx")
        assert total == server.metric("serving_refused_total", model="slow")
