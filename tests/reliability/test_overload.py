"""More requests than can be answered: what is answered, what is refused, and how soon.

A machine that is busy with other things changes its times, not its counts.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from loadtest.digits import load as load_digits
from loadtest.traffic import (
    LOST,
    Load,
    Outcome,
    describe,
    keep_alive,
    of_status,
    open_loop,
    percentile,
)
from tests.archives import SLOW_HANDLER, foreign
from tests.images import b64
from tests.reliability import record
from tests.reliability.record import Section, scaled
from tests.serving import ServerProcess, serving

# A batch of four takes 50 ms: 80 requests a second, which any generator can send ten times.
CAPACITY = 80.0
SECONDS = scaled(3.0, 8.0)
QUEUE_SECONDS = 0.5
SLOW_SECONDS = 0.25
BIN_SECONDS = 0.5
# Times the capacity, and seconds: a spike, and steps up and down.
SPIKE = ((0.5, 4.0), (10.0, 5.0), (0.5, 6.0))
STEPS = ((1.0, 4.0), (2.0, 4.0), (5.0, 4.0), (2.0, 4.0), (1.0, 4.0), (0.5, 4.0))
PROFILE = scaled(((0.5, 2.0), (10.0, 2.0), (0.5, 3.0)), (*SPIKE, *STEPS))
SECTION = Section(
    20,
    "Overload",
    f"""A model whose batch of four takes 50 ms, and so can answer {CAPACITY:.0f} requests a second;
requests come as a Poisson process whatever the answers do, and may wait for
{QUEUE_SECONDS:g} s (`QUEUE_TIMEOUT_SECONDS`). *Recovery* is for how long after the end of
the overload an answer, or a refusal, still took over {SLOW_SECONDS * 1000:.0f} ms. *Cheap beside
dear* is mnist with two workers: one image a request at a rate, alone and then beside eight clients
that send 1,024 images a request without a pause. The case fails if a request is lost, if any has
another answer than 200 and 503, or if what clients were refused is not what the server counted.""",
    picture="overload.png",
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    foreign(tmp_path, "slow", SLOW_HANDLER.format(seconds=0.05), "batchSize: 4\n")
    with serving(tmp_path, QUEUE_TIMEOUT_SECONDS=f"{QUEUE_SECONDS}") as running:
        offer(running, [(1.0, 2.0)])  # the JVM compiles what is hot in the first seconds
        yield running


def offer(server: ServerProcess, phases: Sequence[tuple[float, float]]) -> list[list[Outcome]]:
    """Requests at rates in times of the capacity, each for some seconds, without a gap."""
    delays = [0.0, *accumulate(seconds for _, seconds in phases)]
    with contextlib.ExitStack() as stack:
        loads = [
            stack.enter_context(
                Load(
                    open_loop(server.url("slow"), b"x", times * CAPACITY, seconds, delay=delay),
                )
            )
            for (times, seconds), delay in zip(phases, delays, strict=False)
        ]
        for load in loads:
            load.wait()
    return [load.outcomes for load in loads]


def note(load: str, outcomes: Sequence[Outcome], after: Sequence[Outcome] = ()) -> None:
    """Record a load, with the recovery from it as the calm load `after` it saw that."""
    good, refused = [*of_status(outcomes, 200)], [*of_status(outcomes, 503)]
    assert len(good) + len(refused) == len(outcomes)
    assert good
    seconds = max(o.sent + o.seconds for o in outcomes) - min(o.sent for o in outcomes)
    over = max(o.sent for o in outcomes)
    slow = [o.sent + o.seconds - over for o in after if o.seconds > SLOW_SECONDS]
    SECTION.record(
        {
            "load": load,
            "sent": len(outcomes),
            "lost": len([*of_status(outcomes, LOST)]),
            "answered/s": len(good) / seconds,
            "refused": len(refused),
            "p99 of a refusal, ms": 1e3 * percentile(refused, 0.99) if refused else None,
            "p50 of the accepted, ms": 1e3 * percentile(good, 0.5),
            "p99, ms": 1e3 * percentile(good, 0.99),
            "recovery, s": max(slow, default=0.0) if after else None,
        }
    )


def test_goodput_at_1_2_5_and_10_times_the_capacity(server: ServerProcess) -> None:
    for times in (1, 2, 5, 10):
        outcomes, after = offer(server, [(times, SECONDS), (0.25, 3.0)])
        note(f"{times} times capacity", outcomes, after)
        assert after[-1].status == 200
        assert times == 1 or [*of_status(outcomes, 503)]
    total = server.metric("serving_responses_total", model="slow", code="5xx")
    assert total == server.metric("serving_refused_total", model="slow")


def test_a_spike_and_steps(server: ServerProcess) -> None:
    calm, spike, after, *steps = offer(server, PROFILE)
    times, seconds = PROFILE[1]
    assert {o.status for o in calm} == {200}
    assert after[-1].status == 200
    note(f"a spike of {seconds:g} s, {times:g} times", spike, after)
    if steps:
        names = ", ".join(f"{each:g}" for each, _ in STEPS)
        note(f"steps of {STEPS[0][1]:g} s: {names} times", [o for step in steps for o in step])
    total = server.metric("serving_responses_total", model="slow", code="5xx")
    assert total == server.metric("serving_refused_total", model="slow")
    draw([o for part in (calm, spike, after, *steps) for o in part], calm[0].sent)


def draw(outcomes: Sequence[Outcome], start: float) -> None:
    """Rates and latency over time, into the section's picture."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    sent = np.array([o.sent - start for o in outcomes])
    good = np.array([o.status == 200 for o in outcomes])
    milliseconds = 1e3 * np.array([o.seconds for o in outcomes])
    edges = np.arange(0, sent.max() + BIN_SECONDS, BIN_SECONDS)
    middle = edges[:-1] + BIN_SECONDS / 2
    figure, (rates, times) = plt.subplots(
        2, 1, figsize=(9, 6), sharex=True, layout="constrained", height_ratios=(3, 2)
    )
    ends = sent + milliseconds / 1e3
    for moments, label, colour in (
        (sent, "sent", "tab:gray"),
        (ends[~good], "refused", "tab:red"),
        (ends[good], "answered", "tab:blue"),
    ):
        counted, _ = np.histogram(moments, edges)
        rates.plot(middle, counted / BIN_SECONDS, label=label, color=colour)
    rates.axhline(CAPACITY, color="black", linestyle=":", linewidth=1, label="capacity")
    rates.set(ylabel="requests a second", ylim=(0, None))
    rates.legend(loc="upper right")
    for mask, label, colour in (
        (good, "answered", "tab:blue"),
        (~good, "refused", "tab:red"),
    ):
        bins = np.digitize(sent[mask], edges) - 1
        values = [
            np.percentile(milliseconds[mask][bins == index], 99)
            if (bins == index).any()
            else np.nan
            for index in range(len(middle))
        ]
        times.plot(middle, values, ".-", label=label, color=colour)
    times.axhline(1e3 * QUEUE_SECONDS, color="black", linestyle=":", linewidth=1)
    times.set(xlabel="seconds", ylabel="p99 in half a second, ms", ylim=(0, None))
    times.legend(loc="upper right")
    record.DIRECTORY.mkdir(parents=True, exist_ok=True)
    figure.savefig(record.DIRECTORY / SECTION.picture, dpi=80)
    plt.close(figure)


def test_cheap_requests_beside_dear_ones(store: Path) -> None:
    digits = [digit.png for digit in load_digits()]
    many = [b64(digits[index % len(digits)]) for index in range(1024)]
    dear = json.dumps({"instances": many}).encode()
    rate = 100.0
    with serving(store, "mnist", TS_DEFAULT_WORKERS_PER_MODEL="2") as server:
        url = server.url("mnist")
        with Load(open_loop(url, digits[0], rate, 1.0), keep_alive(url, [dear], count=2)) as warm:
            warm.wait()
        cheap = open_loop(url, digits[0], rate, SECONDS)
        with Load(cheap) as alone:
            alone.wait()
        with Load(*[keep_alive(url, [dear]) for _ in range(8)]) as attack, Load(cheap) as beside:
            beside.wait()
    print(describe(attack))
    for name, load in (("cheap alone", alone), ("cheap beside dear", beside)):
        note(f"{name}, {rate:.0f}/s", load.outcomes)
    note("dear, 8 clients", attack.outcomes)
    assert set(alone.statuses) == {200}
