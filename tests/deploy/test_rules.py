"""Recording and alerting rules, by promtool; the runbook; the dashboard's form."""

import json
import re
import shlex
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.programs import program
from tests.deploy.resources import MONITORING, Resources, rules, write_rules
from tests.deploy.runbook import GUIDE, RUNBOOK, commands, guide
from tests.tls import make_certificate

RULES = rules()
ALERTS = sorted({rule["alert"] for rule in RULES if "alert" in rule})
RECORDS = sorted({rule["record"] for rule in RULES if "record" in rule})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The rules beside their tests, as promtool expects them."""
    write_rules(tmp_path)
    for file in (MONITORING / "prometheus" / "tests").iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path


def promtool(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [program("promtool"), *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


def test_promtool_accepts_the_rules(directory: Path) -> None:
    files = [file.name for file in directory.glob("*-rules.yaml")]
    done = promtool("check", "rules", *files, directory=directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(map(int, re.findall(r"SUCCESS: (\d+) rules", done.stdout))) == len(RULES)


@pytest.mark.parametrize("file", ["recording.yaml", "alerting.yaml"])
def test_rules_yield_the_numbers_derived_by_hand(file: str, directory: Path) -> None:
    done = promtool("test", "rules", file, directory=directory)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("alerting.yaml", "> 14.4 * 0.001", "> 20 * 0.001"),
        ("alerting.yaml", "for: 10m", "for: 11m"),
        ("recording.yaml", "1e-4", "1e-3"),
    ],
)
def test_a_changed_number_fails_the_tests(
    file: str, right: str, wrong: str, directory: Path
) -> None:
    changed = directory / file.replace(".yaml", "-rules.yaml")
    assert right in changed.read_text()
    changed.write_text(changed.read_text().replace(right, wrong))
    assert promtool("test", "rules", file, directory=directory).returncode == 1


@pytest.mark.parametrize(("waiting", "busy"), [(0, 0.3 + 0.2), (7, 0.3 + 1)])
def test_the_scaler_counts_busy_and_waiting_pods(waiting: int, busy: float, tmp_path: Path) -> None:
    """An idle model and a canary count for nothing.

    Of two pods with two workers each, one works 0.6 s a second, so it is busy for 0.3 of the time.
    The other works 0.4 s, or requests wait in its door besides.
    """
    (scaler,) = Resources.of("overlay production").kind("ScaledObject")
    (trigger,) = scaler["spec"]["triggers"]

    def series(name: str, pod: str, values: str, **labels: str) -> dict[str, str]:
        labels = {"namespace": "model-serving", "job": "model-server", "model": "mnist"} | labels
        text = ", ".join(f'{key}="{value}"' for key, value in ({"pod": pod} | labels).items())
        return {"series": f"{name}{{{text}}}", "values": values}

    seconds, workers = "inference_batch_seconds_sum", "serving_workers"
    inputs = [
        series(seconds, "a", "0+9x20"),
        series(seconds, "b", "0+6x20"),
        series("serving_waiting_requests", "a", "0x20"),
        series("serving_waiting_requests", "b", f"{waiting}x20"),
        *(series(workers, pod, "2x20") for pod in "ab"),
        series(seconds, "a", "0x20", model="xor"),
        series(workers, "a", "1x20", model="xor"),
        series("serving_waiting_requests", "a", "0x20", model="xor"),
        series(seconds, "c", "0+15x20", job="model-server-canary"),
        series(workers, "c", "1x20", job="model-server-canary"),
    ]
    sample = {"labels": "{}", "value": busy}
    expected = {
        "expr": f"round({trigger['metadata']['query']}, 1e-6)",
        "eval_time": "4m",
        "exp_samples": [sample],
    }
    test = {"interval": "15s", "input_series": inputs, "promql_expr_test": [expected]}
    (tmp_path / "scaler.yaml").write_text(yaml.safe_dump({"tests": [test]}))
    done = promtool("test", "rules", "scaler.yaml", directory=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def cases(kind: str) -> list[dict[str, Any]]:
    files = (MONITORING / "prometheus" / "tests").iterdir()
    tests = (test for file in files for test in yaml.safe_load(file.read_text())["tests"])
    return [case for test in tests for case in test.get(kind, [])]


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_tested_firing_and_silent(alert: str) -> None:
    expected = [c["exp_alerts"] for c in cases("alert_rule_test") if c["alertname"] == alert]
    assert any(expected)
    assert not all(expected)
    windows = {case["exp_labels"].get("window") for cases in expected for case in cases}
    assert windows == {r["labels"].get("window") for r in RULES if r.get("alert") == alert}


@pytest.mark.parametrize("record", RECORDS)
def test_every_recorded_series_is_tested(record: str) -> None:
    text = " ".join(case["expr"] for case in cases("promql_expr_test"))
    families = re.findall(r'__name__=~"([^"]*)"', text)
    assert record in text or any(re.fullmatch(family, record) for family in families)


def test_every_alert_has_a_severity_and_a_runbook_section() -> None:
    sections = re.findall(r"^## (Model\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert sorted(sections) == ALERTS
    for rule in (rule for rule in RULES if "alert" in rule):
        assert rule["labels"]["severity"] in {"page", "ticket"}
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page.endswith(RUNBOOK.relative_to(MONITORING.parent.parent).as_posix())
        assert anchor == rule["alert"].lower()
        section = RUNBOOK.read_text().partition(f"## {rule['alert']}\n")[2].partition("\n## ")[0]
        assert "\nLook at" in section
        assert "\nDo" in section


COMMANDS = commands(POD="pod-1", NODE="node-1", N="6")
# What the guide's commands begin with that tests run, if not in these words: images, tokens and
# certificates are made, requests sent, and a capacity is searched.
RUN = {"kubectl", "openssl", "token=$(openssl", "echo", "curl", "export", "make"}
RUN |= {".venv/bin/python"}


def test_the_runbook_has_commands() -> None:
    assert len(COMMANDS) > 10


def test_the_guides_have_fewer_than_twenty_commands() -> None:
    kind = guide("From nothing to a prediction, on kind")
    gpus = guide("From nothing to a prediction, on GPUs")
    # Namespace, label, token and its digest, and the Secrets of token and certificate.
    assert 10 < len(kind) < 20
    assert 5 < len(gpus) + 6 < 20


def test_each_program_of_the_guide_is_run_or_said_not_to_be() -> None:
    _, _, not_run = GUIDE.read_text().partition("\nNot run anywhere: ")
    assert not_run
    for name in {command.split()[0] for command in guide()} - RUN:
        assert f"`{name}`" in not_run


@pytest.mark.parametrize(
    "command",
    [*COMMANDS, *(c for c in guide() if c.startswith("kubectl") and not re.search(r" -[kf] ", c))],
)
def test_kubectl_has_nothing_to_say_against(command: str, tmp_path: Path) -> None:
    """Without an API server it gets as far as that: names and flags are right."""
    _, *arguments = shlex.split(command.removesuffix(" &"))
    (tmp_path / "tokens").touch()
    make_certificate(tmp_path / "tls.crt")
    nobody = [program("kubectl"), "--kubeconfig=/dev/null", "--server=http://127.0.0.1:1"]
    done = subprocess.run(
        [*nobody, f"--cache-dir={tmp_path}", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr, done.stderr
    assert "refused" in done.stderr, done.stderr


def test_the_canary_is_taken_out_by_its_weight(tmp_path: Path) -> None:
    (command,) = [command for command in COMMANDS if " patch httproute " in command]
    (patch,) = [part for part in shlex.split(command) if part.startswith("--patch=")]
    route = Resources.of("everything").named("HTTPRoute", "model-server")
    (tmp_path / "route.json").write_text(json.dumps(route))
    local = [program("kubectl"), "patch", "--local", f"--filename={tmp_path / 'route.json'}"]
    done = subprocess.run(
        [*local, "--type=json", patch, "--output=json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rule, _testers = json.loads(done.stdout)["spec"]["rules"]
    shares = {backend["name"]: backend["weight"] for backend in rule["backendRefs"]}
    assert shares == {"model-server": 9, "model-server-canary": 0}


def test_every_panel_is_described_and_none_overlap() -> None:
    dashboard = json.loads((MONITORING / "grafana" / "model-server.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert names == {"datasource", "job", "model", "version"}
    for panel in panels:
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= names
            # kube-state-metrics names the Deployment, which is called as its job.
            label = "deployment" if "kube_deployment" in target["expr"] else "job"
            assert f'{{{label}=~"$job"' in target["expr"]
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or apart
