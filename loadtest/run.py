"""One run of Locust: finds the server, collects what is recorded, and judges it."""

import contextlib
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
import requests
from locust.env import Environment
from locust.rpc import Message
from locust.runners import MasterRunner, WorkerRunner

from loadtest import objectives, report, server_side
from loadtest.objectives import Judgement, ObjectiveError, Outcome, Verdict
from loadtest.profiles import PROFILES
from loadtest.prometheus import Exporter
from loadtest.recorder import LAG, Recorder, Results, percentile

# Seconds that answers may take at the end of a run, unless Locust's option gives more. Users time
# out sooner.
_STOP_TIMEOUT = 30.0
_COLLECT_SECONDS = 0.5
# A server that has answered nothing for so many seconds is gone.
_DEAD_SECONDS = 5.0
_MIN_LAG = 0.005
# Messages between master and workers at the end of a run.
_FINISH, _REST = "loadtest_finish", "loadtest_rest"
_RUN_SECONDS = {"soak": 1800.0}


class Run:
    """Connects Locust's events with the recorder, and judges the run at its end.

    In a distributed run workers record and the master judges; otherwise one process does both.

    Args:
        environment: Locust's.
        recorder: of this process.
    """

    def __init__(self, environment: Environment, recorder: Recorder) -> None:
        self._environment = environment
        self._recorder = recorder
        self._results = Results()
        self._objectives: dict[str, dict[str, float]] = {}
        self._before: dict[server_side.Sample, float] | None = None
        self._faults: list[str] = []
        self._why_invalid: list[str] = []
        self._last_answer = 0.0
        self._collector: gevent.Greenlet | None = None
        self._exporter: Exporter | None = None
        self._unfinished: set[str] = set()

    @property
    def _options(self) -> Any:
        return self._environment.parsed_options

    def connect(self) -> None:
        """Add listeners to Locust's events."""
        events = self._environment.events
        self._environment.stop_timeout = max(self._environment.stop_timeout or 0, _STOP_TIMEOUT)
        runner = self._environment.runner
        if isinstance(runner, WorkerRunner):
            events.report_to_master.add_listener(self._report)
            runner.register_message(_FINISH, self._finish)
            return
        if isinstance(runner, MasterRunner):
            runner.register_message(_REST, self._take_rest)
            events.test_stopping.add_listener(self._finish_workers)
        options = self._options
        options.sources = max(1, options.num_users or 1)
        if options.profile:
            if options.profile not in PROFILES:
                raise SystemExit(
                    f"error: --profile: expected one of {', '.join(PROFILES)}, "
                    f"got {options.profile!r}"
                )
            seconds = options.run_time or _RUN_SECONDS.get(options.profile, 60.0)
            self._environment.shape_class = PROFILES[options.profile](options.sources, seconds)
        if options.prometheus_port:
            self._exporter = Exporter(options.prometheus_port)
        events.worker_report.add_listener(self._merge_report)
        events.test_start.add_listener(self._start)
        events.test_stop.add_listener(self._stop)

    def _report(self, client_id: str, data: dict[str, Any]) -> None:  # noqa: ARG002 (Locust's)
        data["loadtest"] = self._recorder.take()

    def _finish(self, **_: Any) -> None:
        """In a worker: await every answer, and send what has not been reported yet."""
        runner = self._environment.runner
        assert isinstance(runner, WorkerRunner)
        runner.stop()
        runner.send_message(_REST, self._recorder.take())

    def _finish_workers(self, **_: Any) -> None:
        """In the master: wait for the last report of every worker.

        Locust itself waits half a second; the run would then miss requests that the server counted.
        """
        runner = self._environment.runner
        assert isinstance(runner, MasterRunner)
        self._unfinished = {client.id for client in runner.clients.all}
        runner.send_message(_FINISH)
        with gevent.Timeout(self._environment.stop_timeout + 10, False):
            while self._unfinished:
                gevent.sleep(0.05)
        if self._unfinished:
            self._why_invalid.append(
                f"{len(self._unfinished)} workers did not send their last report"
            )

    def _take_rest(self, msg: Message, **_: Any) -> None:
        self._merge(msg.data)
        self._unfinished.discard(msg.node_id)

    def _merge_report(self, client_id: str, data: dict[str, Any]) -> None:  # noqa: ARG002 (Locust's)
        self._merge(data.get("loadtest", {}))

    def _merge(self, batch: dict[str, Any]) -> None:
        added = self._results.merge(batch)
        if any(key != "code 0" for _, counts in batch.values() for key in counts if "code" in key):
            self._last_answer = time.monotonic()
        if self._exporter:
            self._exporter.observe(added, {name: counts for name, (_, counts) in batch.items()})
            users = self._environment.runner.user_count if self._environment.runner else 0
            options = self._options
            share = users / options.sources if options.profile else 1.0
            self._exporter.load(users, options.arrival_rate * share)

    @property
    def telemetry(self) -> str:
        """URL of the server's telemetry; empty for a run without the cross-check."""
        if self._options.telemetry == "none":
            return ""
        host = urlsplit(self._host).hostname
        return self._options.telemetry.rstrip("/") or f"http://{host}:8083"

    @property
    def _host(self) -> str:
        return self._environment.host or "http://127.0.0.1:8080"

    def _start(self, **_: Any) -> None:
        self._results = Results()
        self._faults = []
        self._why_invalid = []
        self._last_answer = time.monotonic()
        try:
            self._objectives = objectives.load(Path(self._options.objectives or objectives.FILE))
            self._look()
        except (ObjectiveError, server_side.ScrapeError) as error:
            self._why_invalid.append(str(error))
            self._give_up()
            return
        self._collector = gevent.spawn(self._collect)

    def _look(self) -> None:
        """Look for the server, before any load.

        Raises:
            ScrapeError: no server answers, or its metrics cannot be read.
        """
        try:
            requests.get(f"{self._host}/ping", timeout=5)
        except requests.RequestException as error:
            kind = type(error).__name__
            raise server_side.ScrapeError(f"no server answers at {self._host}: {kind}") from None
        if not self.telemetry:
            self._before = None
            return
        try:
            self._before = server_side.scrape(f"{self.telemetry}/metrics")
        except server_side.ScrapeError as error:
            hint = "--telemetry or TELEMETRY_ADDRESS names another address"
            raise server_side.ScrapeError(f"{error}; {hint}") from None

    def _give_up(self) -> None:
        # Not within the event: Locust has not yet started what is to be stopped.
        gevent.spawn_later(0.1, self._quit)

    def _quit(self) -> None:
        runner = self._environment.runner
        if runner:
            runner.quit()

    def _collect(self) -> None:
        """Merge what this process recorded, and stop a run whose server is gone."""
        while True:
            gevent.sleep(_COLLECT_SECONDS)
            if not isinstance(self._environment.runner, MasterRunner):
                self._merge(self._recorder.take())
            silence = time.monotonic() - self._last_answer
            unanswered = sum(s.counters["code 0"] for s in self._results.scenarios.values())
            if silence > _DEAD_SECONDS and unanswered:
                self._faults.append(f"the server has answered nothing for {silence:.0f} s")
                self._give_up()
                return

    def _stop(self, **_: Any) -> None:
        """Judge the run, print and write the report, and set the exit code."""
        if self._collector:
            self._collector.kill()
        self._merge(self._recorder.take())
        self._results.ended = time.time()
        served: dict[str, server_side.ModelSide] = {}
        if self._before is not None:
            try:
                after = server_side.scrape(f"{self.telemetry}/metrics")
            except server_side.ScrapeError as error:
                self._why_invalid.append(str(error))
            else:
                served = server_side.difference(self._before, after)
                self._faults += server_side.mismatches(self._results, served)
        judgements: list[Judgement] = []
        if self._results.scenarios:
            with contextlib.suppress(ObjectiveError):
                judgements = objectives.judge(self._results, self._objectives)
            self._why_invalid += lags(self._results, self._objectives)
        if not judgements and not self._why_invalid:
            self._why_invalid.append("no request was sent for which there are objectives")
        outcome = verdict(judgements, self._faults, self._why_invalid)
        word = outcome.name
        if outcome is Outcome.INVALID and not self._why_invalid:
            word = f"{word}: {Verdict.UNDECIDED.value}"
        finished = report.Finished(
            self._results, judgements, served, self._faults, self._why_invalid, word
        )
        print(report.text(finished), flush=True)
        if self._options.artifacts:
            report.write(finished, Path(self._options.artifacts))
            print(f"report.html, results.json and latencies.npz are in {self._options.artifacts}")
        self._environment.process_exit_code = int(outcome)


def lags(results: Results, limits: dict[str, dict[str, float]]) -> list[str]:
    """Scenarios whose requests the generator sent too late, in words; their latency says nothing.

    Too late is a p99 of the lag over 5 ms, or over 10 % of the objective for p99 if that is more.
    """
    found = []
    for name, scenario in results.scenarios.items():
        limit = max(_MIN_LAG, limits.get(name, {}).get("p99", 0.0) / 1e3 / 10)
        lag = percentile(scenario.rows[:, LAG], 99)
        if lag > limit:
            found.append(
                f"{name}: the generator itself was late, by {lag * 1e3:.1f} ms at p99 "
                f"(allowed: {limit * 1e3:.1f}); give it more processes or a lower rate"
            )
    return found


def verdict(judgements: list[Judgement], faults: list[str], why_invalid: list[str]) -> Outcome:
    """The exit code of a run.

    A fault counts whatever the generator did; a missed objective may be the generator's doing.
    """
    if faults:
        return Outcome.FAILED
    if why_invalid:
        return Outcome.INVALID
    return {
        Verdict.PASSED: Outcome.PASSED,
        Verdict.FAILED: Outcome.FAILED,
        Verdict.UNDECIDED: Outcome.INVALID,
    }[objectives.overall(judgements)]
