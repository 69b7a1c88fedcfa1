"""Rules, dashboard and scaler on a real Prometheus that scrapes a real server under load."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import yaml

from loadtest.servers import Server, free_ports, wait_until
from tests.deploy.programs import program
from tests.deploy.resources import MONITORING, Resources, rules, write_rules
from tests.serving import ROOT, ServerProcess, serving

SEVEN = (ROOT / "samples" / "seven.png").read_bytes()
XOR = b'{"instances": [[0, 1], [1, 1]]}'
DASHBOARD = json.loads((MONITORING / "grafana" / "model-server.json").read_text())
PANELS = {
    f"{panel['title']}: {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
}
VARIABLES = {
    variable["name"]: variable["definition"]
    for variable in DASHBOARD["templating"]["list"]
    if variable["type"] == "query"
}
# What kube-state-metrics says beside a cluster's pods.
DESIRED = {
    "record": "kube_deployment_spec_replicas",
    "expr": "vector(1)",
    "labels": {"namespace": "model-serving", "deployment": "model-server"},
}
RULES = rules()
RECORDS = sorted({rule["record"] for rule in RULES if "record" in rule})
# PromQL's words, which look like names of metrics.
WORDS = frozenset(
    {
        "absent",
        "and",
        "avg_over_time",
        "bool",
        "by",
        "changes",
        "clamp_max",
        "clamp_min",
        "count",
        "group_left",
        "histogram_quantile",
    }
    | {
        "ignoring",
        "increase",
        "label_replace",
        "ln",
        "max",
        "max_over_time",
        "min",
        "offset",
        "on",
        "or",
        "predict_linear",
    }
    | {"rate", "round", "sum", "without"}
)


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus that has scraped a server under load, and what the server's clients saw.

    Attributes:
        url: of its API.
        codes: answers that clients got, by model and status.
        names: of the metrics in the server's exposition.
    """

    url: str
    codes: Counter[tuple[str, int]]
    names: frozenset[str]

    def ask(self, path: str, **parameters: str) -> Any:
        response = requests.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def query(self, expression: str) -> list[float]:
        """The values of an instant query that are numbers."""
        for name in VARIABLES:
            expression = expression.replace(f"${name}", ".*")
        values = [float(s["value"][1]) for s in self.ask("query", query=expression)["result"]]
        return [value for value in values if not math.isnan(value)]


def load(server: ServerProcess) -> Counter[tuple[str, int]]:
    """Good requests, bad ones, and more large ones at once than TorchServe has room for."""

    def post(request: tuple[str, bytes]) -> tuple[str, int]:
        model, body = request
        return model, requests.post(server.url(model), data=body, timeout=60).status_code

    batch = json.dumps({"instances": [[[0] * 28] * 27 + [[255] * 28]] * 256}).encode()
    mixed = [("mnist", SEVEN), ("xor", XOR), ("mnist", b"nothing")]
    codes: Counter[tuple[str, int]] = Counter()
    with ThreadPoolExecutor(32) as pool:
        for _ in range(20):
            codes.update(pool.map(post, mixed * 8 + [("mnist", batch)] * 8))
            # A page needs a hundred requests.
            if codes["mnist", 503] >= 10 and codes.total() >= 200:
                break
    return codes


@pytest.fixture(scope="module")
def prometheus(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    binary = program("prometheus")
    directory = tmp_path_factory.mktemp("prometheus")
    write_rules(directory)
    for file in directory.glob("*-rules.yaml"):
        file.write_text(file.read_text().replace("interval: 2m", "interval: 500ms"))
    others = {"groups": [{"name": "kube-state-metrics", "rules": [DESIRED]}]}
    (directory / "kube-rules.yaml").write_text(yaml.safe_dump(others))
    (port,) = free_ports(1)
    with serving(store, "mnist", "xor", QUEUE_TIMEOUT_SECONDS="0.02") as server:
        # As component monitoring configures it, but more often.
        target = {
            "targets": [urlsplit(server.telemetry).netloc],
            "labels": {"namespace": "model-serving", "pod": "model-server-0"},
        }
        scrape = {"job_name": "model-server", "static_configs": [target]}
        configuration = {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
            "rule_files": [str(directory / "*-rules.yaml")],
            "scrape_configs": [scrape],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        url = f"http://127.0.0.1:{port}"
        command = [binary, f"--config.file={directory / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={directory / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{port}"]
        with Server(command, url, f"{url}/-/ready"):
            seen = Prometheus(url, Counter(), frozenset())
            # A counter's first value is not an increase, so all have to be scraped before the load;
            # the server's warm-up has made TorchServe's own.
            known = "ts_inference_requests_total"
            wait_until(lambda: seen.query(f"count_over_time({known}[1m]) > 2"))
            seen.codes.update(load(server))
            text = requests.get(f"{server.telemetry}/metrics", timeout=30).text
            names = frozenset(re.findall(r"^(\w+)[{ ]", text, re.MULTILINE))
            answered = seen.codes.total()
            wait_until(lambda: seen.query(f"sum(serving_responses_total) >= {answered}"))
            end = time()
            for record in RECORDS:
                wait_until(partial(seen.query, f"max(timestamp({record})) > {end}"))
            yield Prometheus(url, seen.codes, names)


def names_in(expression: str) -> set[str]:
    """Names of the metrics that a PromQL expression reads."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", bare)
    bare = re.sub(r"\b(by|on|ignoring|without)\s*\([^)]*\)", "", bare)
    return set(re.findall(r"(?<![\w.])[a-zA-Z_][\w:]*", bare)) - WORDS


def test_names_in_an_expression() -> None:
    expression = 'sum by (job) (rate(a_total{b=~"c d"}[5m])) / on (e) x:y:z1h offset 3h > 1e-4 * 2'
    assert names_in(expression) == {"a_total", "x:y:z1h"}


def test_every_metric_named_exists(prometheus: Prometheus) -> None:
    scaler = Resources.of("overlay production").named("ScaledObject", "model-server")
    (trigger,) = scaler["spec"]["triggers"]
    expressions = [rule["expr"] for rule in RULES] + [*PANELS.values(), *VARIABLES.values()]
    expressions.append(trigger["metadata"]["query"])
    known = {*RECORDS, DESIRED["record"], "up", *prometheus.names}
    variables = {"label_values", "job", "model", "version"}  # in definitions of variables
    for expression in expressions:
        assert names_in(expression) - variables <= known, expression


@pytest.mark.parametrize("panel", PANELS)
def test_every_query_of_the_dashboard_has_data(panel: str, prometheus: Prometheus) -> None:
    assert prometheus.query(PANELS[panel])


@pytest.mark.parametrize("variable", VARIABLES)
def test_every_variable_of_the_dashboard_has_values(variable: str, prometheus: Prometheus) -> None:
    definition = re.fullmatch(r"label_values\((.*), (\w+)\)", VARIABLES[variable])
    assert definition
    series, label = definition.groups()
    for name in VARIABLES:
        series = series.replace(f"${name}", ".*")
    values = prometheus.ask(f"label/{label}/values", **{"match[]": series})
    expected = {"job": ["model-server"], "model": ["mnist", "xor"], "version": ["1.0"]}
    assert values == expected[variable]


@pytest.mark.parametrize("record", RECORDS)
def test_every_recording_rule_has_data(record: str, prometheus: Prometheus) -> None:
    assert prometheus.query(record)


def test_every_rule_can_be_evaluated(prometheus: Prometheus) -> None:
    groups = prometheus.ask("rules")["groups"]
    health = [rule["health"] for group in groups for rule in group["rules"]]
    assert health == ["ok"] * len([*RULES, DESIRED])


def test_the_scaler_counts_busy_pods(prometheus: Prometheus) -> None:
    scaler = Resources.of("overlay production").named("ScaledObject", "model-server")
    (trigger,) = scaler["spec"]["triggers"]
    # The query looks at multiples of five seconds.
    (busy,) = wait_until(lambda: prometheus.query(trigger["metadata"]["query"]))
    assert 0 < busy <= 1  # one pod, whose busiest model's worker is busy for part of the time


def test_failure_ratio_matches_what_clients_saw(prometheus: Prometheus) -> None:
    failed = prometheus.codes["mnist", 503]
    assert failed >= 10
    mnist = sum(count for (model, _), count in prometheus.codes.items() if model == "mnist")
    (seen,) = prometheus.query('job_model:serving_failures:ratio_rate5m{model="mnist"}')
    # Prometheus extrapolates each counter to the ends of the window by itself.
    assert seen == pytest.approx(failed / mnist, rel=0.2)
    (refused,) = prometheus.query('serving_refused_total{model="mnist"}')
    assert refused == failed


def test_alerts_fire_for_what_is_wrong(prometheus: Prometheus) -> None:
    def firing() -> set[tuple[str, str]]:
        alerts = prometheus.ask("alerts")["alerts"]
        return {(a["labels"]["alertname"], a["labels"]["severity"]) for a in alerts}

    wait_until(lambda: ("ModelServerFailuresBurnBudget", "page") in firing())
    quiet = {"ModelServerWorkerRestarts", "ModelServerModelUnavailable", "ModelServerAbsent"}
    assert not {name for name, _ in firing()} & quiet
