"""Users of the service, for Locust: `locust -f loadtest/locustfile.py`, with Locust's own options.

By default the loop is closed, as usual with Locust: each user waits for its answer. With
`--arrival-rate` requests are sent on a schedule that no answer changes, and latency counts from
when a request was to be sent; `--users` is then the number of independent sources. `--profile`
changes either over time. A run ends with a table of objectives and with Locust's exit code: 0 if
all were held, 1 if one was missed, 2 if the run cannot be judged.
"""

import base64
import json
import random
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
from gevent.pool import Group
from locust import FastHttpUser, constant, events, tag, task
from locust.contrib.fasthttp import LocustBadStatusCode
from locust.env import Environment
from typing_extensions import override

from loadtest import digits
from loadtest.arrivals import KINDS, schedule
from loadtest.recorder import Recorder
from loadtest.run import Run

DIGITS = digits.load()
BATCH = 8
CORNERS = [((a, b), a ^ b) for a in (0, 1) for b in (0, 1)]
PNG, JSON = {"Content-Type": "image/png"}, {"Content-Type": "application/json"}

recorder = Recorder()


class ServiceUser(FastHttpUser):
    """Sends requests of one scenario, in a closed or an open loop.

    A subclass says which, and makes `predict` a task.
    """

    abstract = True
    host = "http://127.0.0.1:8080"
    wait_time = constant(0)
    # Less than the time that a run gives its last requests (loadtest/run.py): a request without an
    # answer is then counted as such, and not forgotten with its user.
    connection_timeout = 10.0
    network_timeout = 20.0
    # In an open loop no request may wait for another's connection.
    concurrency = 4096

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._under_way = Group()
        self._rng = random.Random()  # noqa: S311 (load, no secrets)

    def question(self) -> tuple[str, bytes, dict[str, str], list[int]]:
        """Scenario, body, headers, and the correct labels of a request."""
        raise NotImplementedError

    def predict(self) -> None:
        """Send one request; in an open loop, every request until the user is stopped."""
        options = self.environment.parsed_options
        if not options.arrival_rate:
            self.ask(time.perf_counter())
            return
        rate = options.arrival_rate / options.sources
        for intended in schedule(options.arrivals, rate, time.perf_counter(), self._rng):
            while (wait := intended - time.perf_counter()) > 0 and self._state == "running":
                gevent.sleep(min(wait, 0.1))
            if self._state != "running":
                break
            self._under_way.spawn(self.ask, intended)
        self._under_way.join()

    def ask(self, intended: float) -> None:
        """Send one request, check the answer, and record both.

        Args:
            intended: when it was to be sent, by `time.perf_counter`.
        """
        scenario, body, headers, labels = self.question()
        start, now = time.perf_counter(), time.time()
        lag = start - intended
        counts: Counter[str] = Counter()
        with self.client.post(
            f"/predictions/{scenario.partition('-')[0]}",
            data=body,  # type: ignore[arg-type]
            headers=headers | {"X-Request-Start": f"t={now:.6f}"},
            name=scenario,
            catch_response=True,
        ) as response:
            # By the client's own clock, which stops at the last byte, not when this greenlet gets
            # its turn.
            latency = lag + response.request_meta["response_time"] / 1e3
            response.request_meta["response_time"] = latency * 1e3
            # Any error but that of a bad status is the connection's: an answer that broke off is
            # none, though its status came.
            error = response.request_meta["exception"]
            whole = error is None or isinstance(error, LocustBadStatusCode)
            status = response.status_code if whole else 0
            counts[f"code {status}"] = 1
            problem = None
            if status != 200:
                text = (response.text if status else str(error)) or ""
                problem = f"{status}: {text[:200]}"
            else:
                answered, problem = labels_of(response.text, len(labels))
                counts["instances"] = len(answered)
                counts["correct"] = sum(a == b for a, b in zip(answered, labels, strict=False))
            if problem:
                counts["failed"] = 1
                response.failure(problem)
            else:
                response.success()
        recorder.add(scenario, now - lag, latency, lag, counts)


class MnistImages(ServiceUser):
    """One digit of MNIST's test set, as a PNG file."""

    weight = 6

    @override
    def question(self) -> tuple[str, bytes, dict[str, str], list[int]]:
        digit = self._rng.choice(DIGITS)
        return "mnist-png", digit.png, PNG, [digit.label]

    @override
    @tag("mnist", "png")
    @task
    def predict(self) -> None:
        super().predict()


class MnistBatches(ServiceUser):
    """Eight digits in a JSON document."""

    weight = 1

    @override
    def question(self) -> tuple[str, bytes, dict[str, str], list[int]]:
        chosen = self._rng.choices(DIGITS, k=BATCH)
        instances = [{"b64": base64.b64encode(digit.png).decode()} for digit in chosen]
        body = json.dumps({"instances": instances}).encode()
        return "mnist-json", body, JSON, [digit.label for digit in chosen]

    @override
    @tag("mnist", "json")
    @task
    def predict(self) -> None:
        super().predict()


class XorPairs(ServiceUser):
    """One pair of bits."""

    weight = 1

    @override
    def question(self) -> tuple[str, bytes, dict[str, str], list[int]]:
        corner, label = self._rng.choice(CORNERS)
        return "xor", json.dumps({"instances": [corner]}).encode(), JSON, [label]

    @override
    @tag("xor", "json")
    @task
    def predict(self) -> None:
        super().predict()


def labels_of(text: str | None, count: int) -> tuple[list[int], str | None]:
    """The labels of an answer, and what is wrong with its form, if anything."""
    try:
        predictions = json.loads(text or "")["predictions"]
        labels = [prediction["label"] for prediction in predictions]
        for prediction in predictions:
            probabilities = prediction["probabilities"]
            if prediction["confidence"] != probabilities[prediction["label"]]:
                return [], "the confidence is not the label's probability"
            if abs(sum(probabilities) - 1) > 1e-4:
                return [], f"the probabilities sum to {sum(probabilities)}"
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return [], f"malformed answer ({type(error).__name__}: {error}): {(text or '')[:100]}"
    if len(labels) != count:
        return [], f"{len(labels)} predictions for {count} instances"
    return labels, None


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_arguments(parser: ArgumentParser) -> None:
    """Add options to Locust's own."""
    add: Callable[..., Any] = parser.add_argument
    add("--arrival-rate", type=float, default=0.0, metavar="R", help="open loop: requests a second")
    add("--arrivals", choices=KINDS, default="poisson", help="open loop: gaps between requests")
    add("--objectives", default="", metavar="FILE", help="default: loadtest/objectives.toml")
    add(
        "--telemetry",
        env_var="TELEMETRY_ADDRESS",
        default="",
        metavar="URL",
        help="of the service, for the cross-check; default: TELEMETRY_ADDRESS, else port 8083 of "
        "the host; `none`: no cross-check",
    )
    add("--artifacts", default="", metavar="DIR", help="where to write the report")
    add(
        "--prometheus-port", type=int, default=0, metavar="PORT", help="the generator's own metrics"
    )
    # Set by the run, and sent to workers with the others.
    add("--sources", type=int, default=1, include_in_web_ui=False, help="internal")


@events.init.add_listener  # type: ignore[untyped-decorator]
def connect(environment: Environment, **_: Any) -> None:
    """Connect the recorder to Locust's events, and the run in the process that judges it."""
    Run(environment, recorder).connect()
