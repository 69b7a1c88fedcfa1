"""Sends hostile requests at a rate, reads an answer for each, and judges it."""

import asyncio
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from tests.reliability import hostile
from tests.reliability.hostile import Case
from tests.reliability.record import DIRECTORY
from tests.reliability.wire import Answer, read_answer

# Requests that are sent one after the other without waiting for answers, and bytes of them in all.
_PIPELINED, _PIPELINED_BYTES = 8, 16_000
_SECONDS = 60.0


@dataclass
class Tally:
    """What became of the requests of a flood.

    Attributes:
        sent: requests by kind; each had one answer, or stands in `failures`.
        refused: answers by their reason: status and type.
        failures: what was wrong with an answer, with the request's kind and where its bytes are.
    """

    sent: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, seed: int, index: int, case: Case, answer: Answer | None) -> None:
        """Judge the answer to a request; keep the request if it was wrong."""
        self.sent[case.kind] += 1
        wrong = "no answer" if answer is None else fault(case, answer)
        if wrong:
            file = DIRECTORY / "hostile" / f"{seed}-{index}.bin"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(case.wire)
            self.failures.append(f"{case.kind}, seed {seed}, index {index}: {wrong}: {answer}")
        elif answer and answer.status >= 400:
            self.refused[reason(answer)] += 1
        else:
            self.answered += 1


def reason(answer: Answer) -> str:
    """Status and type of a refusal."""
    if answer.headers.get("content-type") != "application/json":
        return f"{answer.status}, HAProxy's page"
    return f"{answer.status} {json.loads(answer.body)['type']}" if answer.body else "HEAD"


def fault(case: Case, answer: Answer) -> str | None:
    """What is wrong with an answer, or None."""
    status = answer.status
    if status not in case.statuses | {200, 503} or (case.is_alone and status == 200):
        return f"status {status}"
    is_page = b"<h1>%d " % status in answer.body  # HAProxy's own, for what is not HTTP
    if case.method == "HEAD" or (case.is_alone and is_page):
        return None
    return _fault_of_prediction(answer) if status == 200 else _fault_of_refusal(answer)


def _fault_of_prediction(answer: Answer) -> str | None:
    if answer.headers.get("content-type") == "application/json":
        document = json.loads(answer.body)
        for prediction in document.get("predictions", ()):
            total = math.fsum(prediction["probabilities"])
            if not math.isclose(total, 1, abs_tol=1e-5):
                return f"probabilities that sum to {total}"
    return None  # a page, or a binary tensor


def _fault_of_refusal(answer: Answer) -> str | None:
    try:
        problem = json.loads(answer.body)
    except ValueError:
        return "a refusal that is not JSON"
    text = problem.get("message") or problem.get("error")
    if problem.get("code") != answer.status or not problem.get("type") or not text:
        return "a refusal without its reason"
    if answer.status == 503 and not answer.headers.get("retry-after"):
        return "503 without Retry-After"
    return None


class _Connection:
    """Keeps a connection while the server does."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, cases: list[Case]) -> list[Answer | None]:
        """Send requests at once, and read their answers in order.

        Those behind an answer that closes the connection are not served, and are left out.
        """
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 22)
        reader, writer = self._streams
        sending = asyncio.create_task(self._send(writer, b"".join(case.wire for case in cases)))
        answers: list[Answer | None] = []
        for case in cases:
            answer = None
            with suppress(OSError, EOFError, ValueError, TimeoutError):
                answer = await asyncio.wait_for(read_answer(reader, case.method), _SECONDS)
            answers.append(answer)
            if answer is None or answer.closes:
                self.close()
                break
        await sending
        return answers

    @staticmethod
    async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
        with suppress(OSError):  # refused before it was sent as a whole
            writer.write(data)
            await writer.drain()

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
            self._streams = None


async def _user(port: int, seed: int, indices: Iterator[int], start: float, rate: float) -> Tally:
    tally = Tally()
    connection = _Connection(port)
    batch: list[tuple[int, Case]] = []

    async def flush() -> None:
        while batch:
            answers = await connection.ask([case for _, case in batch])
            for (index, case), answer in zip(batch, answers, strict=False):
                tally.add(seed, index, case, answer)
            del batch[: len(answers)]

    for index in indices:
        await asyncio.sleep(max(0.0, start + index / rate - time.monotonic()))
        case = hostile.make(seed, index)
        size = len(case.wire) + sum(len(other.wire) for _, other in batch)
        if case.is_alone or size > _PIPELINED_BYTES:
            await flush()
        if case.is_alone:
            alone = _Connection(port)
            (answer,) = await alone.ask([case])
            alone.close()
            tally.add(seed, index, case, answer)
            continue
        batch.append((index, case))
        if len(batch) == _PIPELINED or size > _PIPELINED_BYTES:
            await flush()
    await flush()
    connection.close()
    return tally


def flood(port: int, seed: int, count: int, rate: float, connections: int = 16) -> Tally:
    """Send requests and judge their answers.

    Args:
        port: of the front door, on loopback.
        seed: of the requests.
        count: how many.
        rate: requests a second, at most.
        connections: that take turns.
    """
    hostile.originals(), hostile.bombs()  # made before the clock starts

    async def run() -> list[Tally]:
        start = time.monotonic()
        indices = itertools.islice(itertools.count(), count)
        users = (_user(port, seed, indices, start, rate) for _ in range(connections))
        return await asyncio.gather(*users)

    total = Tally()
    for tally in asyncio.run(run()):
        total.sent += tally.sent
        total.answered += tally.answered
        total.refused += tally.refused
        total.failures += tally.failures
    return total
