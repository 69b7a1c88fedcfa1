"""Processes of a pod are killed under load: what starts them again, and what users see of it."""

from typing import Any

import pytest

from tests.cluster.clients import Client
from tests.cluster.cluster import Cluster, restarts
from tests.cluster.node import Node
from tests.deploy.resources import Document
from tests.deploy.runbook import arguments

# Kills one process whose command line has a text, and is not this one's.
KILL = """
import os, pathlib, signal, sys
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    command = path.read_bytes().decode().split("\\0")
    if any(sys.argv[1] in part for part in command) and int(path.parent.name) != os.getpid():
        os.kill(int(path.parent.name), signal.SIGKILL)
        sys.exit()
sys.exit("no such process")
"""
# More than the container's memory, with what is in it; the kernel looks for whoever has the most.
FILL = "open('/proc/self/oom_score_adj', 'w').write('1000'); x = b'x' * (1536 << 20)"
USERS = 4
# Of all requests, those that may be lost while one of two pods is gone: half go to each, by chance.
SHARE = 0.75


class TestKills:
    @pytest.fixture
    def victim(self, served: Cluster) -> Document:
        return served.pods()[0]

    def again(self, served: Cluster, client: Client) -> None:
        """Both pods are ready, and nothing is lost any more."""
        served.wait_until_rolled_out()
        with client.load(users=USERS, keep_alive=False) as load:
            served.wait_until_rolled_out()
            client.python("import time; time.sleep(3)")
        assert load.problems == {}
        assert load.sent > 50

    def kill(  # noqa: PLR0913 (what is killed, where, and under which load)
        self,
        served: Cluster,
        client: Client,
        victim: Document,
        text: str,
        metric: str,
        *,
        keep_alive: bool = True,
    ) -> tuple[dict[str, int], dict[str, Any]]:
        """Kill a process of the pod under load; what became of requests until it is replaced."""
        name = victim["metadata"]["name"]
        before = self.metric(served, name, metric)
        with client.load(users=USERS, keep_alive=keep_alive) as load:
            served.kubectl("exec", name, "--", "python", "-c", KILL, text)
            served.wait_until(lambda: self.metric(served, name, metric) > before)
            served.wait_until(lambda: self.is_ready(served, name))
        # The server started it again, and not the kubelet the container.
        (after,) = [pod for pod in served.pods() if pod["metadata"]["name"] == name]
        assert restarts(after) == restarts(victim)
        return load.problems, load.figures

    @staticmethod
    def is_ready(served: Cluster, name: str) -> bool:
        """By its own word too: the kubelet, which asks each 5 s, may not have noticed a thing."""
        conditions = served.get("pod", name)["status"]["conditions"]
        code = "import urllib.request as r; r.urlopen('http://127.0.0.1:8083/readyz')"
        own = served.kubectl("exec", name, "--", "python", "-c", code, check=False)
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        return ready and own.returncode == 0

    @staticmethod
    def metric(served: Cluster, name: str, metric: str) -> float:
        code = (
            "import sys, urllib.request as r\n"
            "text = r.urlopen('http://127.0.0.1:8083/metrics').read().decode()\n"
            "print(sum(float(line.split()[-1]) for line in text.splitlines()"
            " if line.startswith(sys.argv[1])))"
        )
        done = served.kubectl("exec", name, "--", "python", "-c", code, metric, check=False)
        return float(done.stdout) if done.returncode == 0 else -1.0

    def test_a_worker(
        self,
        served: Cluster,
        client: Client,
        victim: Document,
        cluster_figures: dict[str, Any],
    ) -> None:
        """The front door sends its requests again."""
        problems, figures = self.kill(
            served, client, victim, "model_service_worker", "serving_worker_starts_total"
        )
        cluster_figures["worker_killed"] = figures
        assert problems == {}
        self.again(served, client)

    def test_the_jvm(
        self,
        served: Cluster,
        client: Client,
        victim: Document,
        cluster_figures: dict[str, Any],
    ) -> None:
        """Until the pod is not ready, its requests are refused, with an answer."""
        problems, figures = self.kill(
            served, client, victim, "/java", "serving_torchserve_starts_total", keep_alive=False
        )
        cluster_figures["jvm_killed"] = figures | {"problems": problems}
        assert all(problem.startswith(("503 ", "0 ")) for problem in problems), problems
        assert figures["lost"] < SHARE * figures["sent"]
        self.again(served, client)

    def test_the_front_door(
        self,
        served: Cluster,
        client: Client,
        victim: Document,
        cluster_figures: dict[str, Any],
    ) -> None:
        """What was under way is lost with it: a request a connection."""
        problems, figures = self.kill(
            served, client, victim, "haproxy", "serving_door_starts_total"
        )
        cluster_figures["door_killed"] = figures | {"problems": problems}
        assert figures["lost"] <= 2 * USERS
        self.again(served, client)

    def test_the_container(
        self,
        served: Cluster,
        client: Client,
        victim: Document,
        node: Node | None,
        cluster_figures: dict[str, Any],
    ) -> None:
        """The kubelet starts it again; the other pod serves."""
        if node is None:
            pytest.skip("a container is killed on its node, here the tests' own")
        name = victim["metadata"]["name"]
        (status,) = victim["status"]["containerStatuses"]
        with client.load(users=USERS, keep_alive=False) as load:
            node.containerd.kill(status["containerID"].rpartition("/")[2])
            served.wait_until(lambda: restarts(served.get("pod", name)) == restarts(victim) + 1)
            served.wait_until(lambda: self.is_ready(served, name))
        cluster_figures["container_killed"] = load.figures | {"problems": load.problems}
        state = served.get("pod", name)["status"]["containerStatuses"][0]["lastState"]
        assert state["terminated"]["exitCode"] == 137
        # The runbook's looks at a container that was started again.
        why, said = (arguments(text, POD=name, NODE="", N="") for text in ("REASON", "--previous"))
        assert any(
            name in line and "137" in line for line in served.kubectl(*why).stdout.splitlines()
        )
        assert served.kubectl(*said).stdout.strip()
        # Until the endpoint is gone, new connections may meet nobody.
        assert load.lost < SHARE * load.sent
        self.again(served, client)

    def test_more_memory_than_the_limit(
        self,
        served: Cluster,
        client: Client,
        victim: Document,
        cluster_figures: dict[str, Any],
    ) -> None:
        """The kernel kills what took it, or where cgroups are of version 2 the container."""
        name = victim["metadata"]["name"]
        with client.load(users=USERS, keep_alive=False) as load:
            done = served.kubectl("exec", name, "--", "python", "-c", FILL, check=False)
            assert done.returncode == 137, done.stdout
            client.python("import time; time.sleep(3)")
            served.wait_until(lambda: self.is_ready(served, name))
        (after,) = [pod for pod in served.pods() if pod["metadata"]["name"] == name]
        cluster_figures["memory_exceeded"] = load.figures | {
            "restarts": restarts(after) - restarts(victim)
        }
        assert load.lost <= (SHARE * load.sent if restarts(after) > restarts(victim) else 0)
        self.again(served, client)
