import pytest

from handler.allowance import Allowance
from handler.errors import OverloadedError


class Clock:
    """Seconds that pass only when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Worker:
    """Handles batches, of which the last request may be dear."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.allowance = Allowance(self.clock)

    def batch(self, size: int, *dear: float) -> list[int]:
        """Take a batch in which some requests take so many seconds each.

        Returns:
            For each of those 200, or 503.
        """
        self.allowance.begin_batch(size)
        return [self._status(seconds) for seconds in dear]

    def _status(self, seconds: float) -> int:
        try:
            with self.allowance.spend():
                self.clock.now += seconds
        except OverloadedError as error:
            return error.code
        return 200


def test_a_batch_begins_one_request_that_takes_long() -> None:
    assert Worker().batch(8, 0.5, 0.5, 0.01) == [200, 503, 503]


def test_a_batch_takes_several_requests_of_medium_length() -> None:
    assert Worker().batch(8, *[0.03] * 8) == [200] * 4 + [503] * 4


def test_dear_requests_take_half_of_the_time() -> None:
    worker = Worker()
    begin = worker.clock.now
    codes = []
    for _ in range(10_000):
        codes += worker.batch(8, 0.2)
        worker.clock.now += 0.001
    served = codes.count(200) * 0.2
    assert served / (worker.clock.now - begin) == pytest.approx(0.5, abs=0.01)


def test_a_refusal_says_when_to_come_again() -> None:
    worker = Worker()
    worker.batch(1, 3.0)
    worker.batch(2)
    with pytest.raises(OverloadedError, match="retry after 3 s") as caught:
        worker.allowance.check()
    assert caught.value.headers == {"Retry-After": "3"}
    worker.clock.now += 3
    worker.batch(2)
    worker.allowance.check()


def test_requests_that_come_one_by_one_are_all_admitted() -> None:
    worker = Worker()
    assert [worker.batch(1, 0.5) for _ in range(5)] == [[200]] * 5
    worker.batch(2)
    assert worker.batch(1, 0.5) == [503]
    worker.clock.now += 0.3
    assert worker.batch(1, 0.5) == [503]
    worker.clock.now += 0.7
    assert worker.batch(1, 0.5) == [200]


def test_work_that_fails_is_paid_for() -> None:
    worker = Worker()

    def fail() -> None:
        with worker.allowance.spend():
            worker.clock.now += 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert worker.batch(5, 0.01) == [503]
