"""Load profiles: how many users there are over a run, as shapes of Locust."""

from locust import LoadTestShape
from typing_extensions import override


class Profile(LoadTestShape):
    """Users over time, as a share of their peak.

    In an open loop each user is a source of its share of the arrival rate, so the same shape moves
    the rate.

    Args:
        peak: maximum number of users.
        duration: seconds until the run ends.
    """

    abstract = True

    def __init__(self, peak: int, duration: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._peak = peak
        self._duration = duration

    def share(self, progress: float) -> float:
        """Users as a share of the peak, 0 to 1, at a progress through the run of 0 to 1."""
        raise NotImplementedError

    @override
    def tick(self) -> tuple[int, float] | None:
        progress = self.get_run_time() / self._duration  # type: ignore[no-untyped-call]
        if progress >= 1:
            return None
        return max(1, round(self._peak * self.share(progress))), float(self._peak)


class Steady(Profile):
    """The peak from start to end."""

    @override
    def share(self, _: float) -> float:
        return 1.0


class Ramp(Profile):
    """From nothing to the peak in a straight line."""

    @override
    def share(self, progress: float) -> float:
        return progress


class Step(Profile):
    """A quarter, a half, three quarters and all of the peak, a quarter of the time each."""

    @override
    def share(self, progress: float) -> float:
        return (1 + int(progress * 4)) / 4


class Spike(Profile):
    """A quarter of the peak, but all of it in the middle fifth of the run."""

    @override
    def share(self, progress: float) -> float:
        return 1.0 if 0.4 <= progress < 0.6 else 0.25


class Soak(Steady):
    """Half of the peak, for the hours that a leak takes to show."""

    @override
    def share(self, _: float) -> float:
        return 0.5


PROFILES: dict[str, type[Profile]] = {
    profile.__name__.lower(): profile for profile in (Steady, Ramp, Step, Spike, Soak)
}
