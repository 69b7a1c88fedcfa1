"""Pods that work together: tokens, Service, replacement, archives in a volume, load test."""

import contextlib
import hashlib
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import requests

from loadtest.digits import Digit
from tests.archives import altered
from tests.deploy.cluster import Cluster
from tests.deploy.containers import Pod
from tests.deploy.traffic import PNG, TOKEN, Load, Service, answered, label

# Requests a second, and seconds of them before the replacement.
RATE = 100.0
BEFORE = 8.0
# Seconds in which balancers still send new connections to a pod that is stopping.
LAG = 2.0
# Below what any test sends in a second.
SLOW = '"RATE_LIMIT", "value": "5"'


def test_tokens_and_rates(images: dict[str, str], tmp_path: Path) -> None:
    assert images
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "tokens").write_text(f"{hashlib.sha256(TOKEN.encode()).hexdigest()} team-a\n")
    cluster = Cluster("component tokens", tmp_path, {"model-server-tokens": secret})
    with cluster.pod("model-server", ('"RATE_LIMIT", "value": "500"', SLOW)) as pod:
        pod.wait_until_ready()

        def ask(token: str) -> int:
            url = f"{pod.url('http')}/predictions/xor"
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            body = {"instances": [[0, 1]]}
            return requests.post(url, json=body, headers=headers, timeout=60).status_code

        assert [ask(token) for token in ("", "wrong", f"{TOKEN}x")] == [401] * 3
        assert '"status": 401' in pod.log
        assert {ask(TOKEN) for _ in range(50)} == {200, 429}


def test_rolling_replacement_loses_no_request(
    cluster: Cluster, service: Service, digits: list[Digit], figures: dict[str, Any]
) -> None:
    strategy = cluster.resources.named("Deployment", "model-server")["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    load = Load(f"http://{service.host}:{service.port}/predictions/mnist", PNG, digits, RATE)
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, service, "endpoints", service.endpoints)
        old = stack.enter_context(cluster.pod("model-server")).wait_until_ready()
        service.endpoints = [old.ip]
        # It has served for a while, so that its JVM has compiled its code.
        for digit in digits:
            label(old.url("http"), digit.png)
        old_before = answered(old)
        with load, ThreadPoolExecutor(1) as pool:
            time.sleep(BEFORE)
            begun = time.perf_counter()
            new = stack.enter_context(cluster.pod("model-server")).wait_until_ready()
            figures["ready_seconds"] = time.perf_counter() - begun
            new_before = answered(new)
            service.endpoints = [old.ip, new.ip]
            until_told = answered(old) - old_before
            told = time.perf_counter()
            stopped = pool.submit(old.stop)
            time.sleep(LAG)
            readiness = old.probe("readiness")
            service.endpoints = [new.ip]
            code = stopped.result()
            time.sleep(LAG)
        answers = load.answers
        problems = [answer.problem for answer in answers if answer.problem]
        figures["requests_failed"] = len(problems)
        assert problems == []
        assert code == 0
        last = re.fullmatch(
            r"stopped: every request was answered \(([\d,]+)\)", old.log.splitlines()[-1]
        )
        assert last
        # The handler has answered one request that did not come by the door: the warm-up.
        by_old = int(last[1].replace(",", "")) - (old_before - 1)
        by_new = answered(new) - new_before
    # Each request once, and some by the pod that was stopping.
    assert readiness == 503
    assert by_old > until_told
    assert by_new > 0
    assert by_old + by_new == len(answers)
    # While the new one starts, it takes processor time that in a cluster is another node's.
    for phase, start, end in (
        ("before", 0.0, begun),
        ("starting", begun, told),
        ("replacing", told, np.inf),
    ):
        milliseconds = [1e3 * answer.seconds for answer in answers if start <= answer.sent < end]
        figures[f"requests_{phase}"] = len(milliseconds)
        for percent in (50, 99):
            figures[f"p{percent}_{phase}_ms"] = float(np.percentile(milliseconds, percent))


class TestModelVolume:
    def volume(self, directory: Path) -> Path:
        """A claim that user 10001 may write to, as the volume's driver makes it."""
        volume = directory / "claim"
        volume.mkdir()
        volume.chmod(0o777)
        return volume

    def server(self, directory: Path, volume: Path) -> Pod:
        cluster = Cluster("component model-volume", directory, {"model-archives": volume})
        return cluster.pod("model-server")

    def test_what_the_job_trained_is_served(self, images: dict[str, str], tmp_path: Path) -> None:
        """Of the models one that is trained in seconds."""
        assert images
        volume = self.volume(tmp_path)
        for kind in ("job", "again", "server"):
            (tmp_path / kind).mkdir()
        cluster = Cluster("component training", tmp_path / "job", {"model-archives": volume})
        only = (("training train", "training train xor"), ("training pack", "training pack xor"))
        done = cluster.pod("training", *only).run("training")
        assert [file.name for file in (volume / "1").iterdir()] == ["xor.mar"], done.stdout
        # A release that exists is never written to.
        again = Cluster("component training", tmp_path / "again", {"model-archives": volume})
        done = again.pod("training", *only).run("training", check=False)
        assert done.returncode == 2
        assert "release 1 exists" in done.stdout
        with self.server(tmp_path / "server", volume) as pod:
            pod.wait_until_ready()
            url = f"{pod.url('http')}/predictions/xor"
            answer = requests.post(url, json={"instances": [[0, 1]]}, timeout=60).json()
            assert [prediction["label"] for prediction in answer["predictions"]] == [1]

    def test_an_exchanged_torchscript_is_not_served(
        self, images: dict[str, str], store: Path, tmp_path: Path
    ) -> None:
        assert images
        volume = self.volume(tmp_path)
        (volume / "1").mkdir()
        altered(store / "xor.mar", volume / "1" / "xor.mar", {"model.pt": b"another"})
        with self.server(tmp_path, volume) as pod:
            assert pod.wait() == 1
            assert "model.pt of model xor 1.0 has SHA-256" in pod.log

    def test_a_release_that_is_not_there(self, images: dict[str, str], tmp_path: Path) -> None:
        assert images
        pod = self.server(tmp_path, self.volume(tmp_path))
        done = pod.run("model-server", check=False)
        assert done.returncode


class TestLoadtest:
    """The Jobs, for some seconds, with latency objectives that a busy machine holds."""

    def verdict(
        self, server: Pod, directory: Path, seconds: int, *changes: tuple[str, str]
    ) -> tuple[int, str]:
        """Run the load test; return the master's exit code and log."""
        cluster = Cluster("component loadtest", directory)
        for limit in ("p50 = 15", "p95 = 30", "p99 = 50", "p99 = 60", "p99 = 40"):
            cluster.change("objectives.toml", limit, f"{limit}00")
        for old, new in changes:
            cluster.change("objectives.toml", old, new)
        hosts = {"model-server": server.ip}
        shorter = ("--run-time=120s", f"--run-time={seconds}s")
        with contextlib.ExitStack() as stack:
            master = stack.enter_context(cluster.pod("loadtest", shorter, hosts=hosts))
            hosts["loadtest"] = master.ip
            for _ in range(2):
                stack.enter_context(cluster.pod("loadtest-worker", hosts=hosts))
            return master.wait(), master.log

    def test_objectives_are_held(self, server: Pod, tmp_path: Path) -> None:
        code, log = self.verdict(server, tmp_path, 12)
        assert code == 0, log

    def test_capacity_search(self, server: Pod, tmp_path: Path) -> None:
        """At one rate, which a busy machine may hold or not."""
        few = '"--processes=2", "--window=3", "--low=50", "--high=50", "--precision=0.9"'
        job = Cluster("component loadtest", tmp_path).pod(
            "capacity", ('"--processes=2"', few), hosts={"model-server": server.ip}
        )
        with job:
            assert job.wait() in (0, 1), job.log
            assert "capacity.json are in /tmp/capacity" in job.log

    def test_a_missed_objective(self, server: Pod, tmp_path: Path) -> None:
        code, log = self.verdict(server, tmp_path, 5, ("min_rate = 100", "min_rate = 100000"))
        assert code == 1, log
        assert "min_rate" in log
