"""The rendered manifests are valid for three versions of Kubernetes and follow the policies."""

import json
import os
import re
import subprocess
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import image
from deploy.manifests import (
    COMPONENTS,
    KUBERNETES,
    OVERLAYS,
    ManifestError,
    main,
    render,
    render_with,
)
from server.settings import Settings, load_settings
from tests.deploy.programs import program
from tests.deploy.resources import (
    EVERYTHING,
    RENDERINGS,
    Document,
    Resources,
    containers,
    elsewhere,
    manifest,
    matches,
    ports,
)
from tests.serving import ROOT

VERSIONS = ("1.31", "1.34", "1.37")
CUSTOM = ("PrometheusRule", "ScaledObject", "ServiceMonitor")
# Nobody publishes their schemas as a Python package: tests/cluster applies them.
ROUTES = ("Gateway", "HTTPRoute")
# Secrets that the guide has an operator create by hand.
SECRETS = {"model-server-tokens", "model-server-tls"}
# A claim that component `training` makes and fills, in an overlay of its own.
CLAIMS = {"model-archives"}
# Besides the heap, direct memory and /tmp, under load: workers as config.properties has them; the
# JVM's code, classes and stacks; the server, and the front door.
MEASURED_MIB = {"mnist": 2 * 190, "xor": 150, "jvm": 100, "server": 70, "door": 30}
NAME = "app.kubernetes.io/name"
SERVER = "model-server"
DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
# Peers outside the rendering; the components' READMEs say what they are.
OUTSIDE = ({"kubernetes.io/metadata.name": "monitoring"},)


@pytest.fixture(params=RENDERINGS)
def resources(request: pytest.FixtureRequest) -> Resources:
    program("kubectl")
    return Resources.of(request.param)


def servers(resources: Resources) -> list[Document]:
    """The containers of model servers, the canary's included."""
    return [
        container
        for _, pod in resources.pods()
        for container in pod["spec"]["containers"]
        if container["name"] == SERVER
    ]


def environ(container: Document) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"]}


def settings_of(container: Document) -> Settings:
    """The settings of a server in this container, without files that only a cluster has."""
    (image,) = re.findall(r"(?m)^ENV (PYTHONDONT[^#]*?LOG_LOCATION[^#]*?)\n[A-Z]", DOCKERFILE)
    variables = re.findall(r"(\w+)=(\S+)", image)
    environment = dict(variables) | environ(container)
    environment.pop("TOKEN_FILE", None)
    return load_settings(ROOT / "config.properties", environment)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    program("kubectl")
    directory = tmp_path_factory.mktemp("manifests")
    files = []
    for name in RENDERINGS:
        files.append(directory / f"{name.replace(' ', '-')}.yaml")
        files[-1].write_text(manifest(name))
    return files


def run(*command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        input=text,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def core(files: list[Path], directory: Path) -> list[str]:
    """Copies of the files without custom resources."""
    kept = []
    for file in files:
        documents = [
            d for d in yaml.safe_load_all(file.read_text()) if d["kind"] not in CUSTOM + ROUTES
        ]
        kept.append(directory / file.name)
        kept[-1].write_text(yaml.safe_dump_all(documents))
    return [str(path) for path in kept]


def complaints(version: str, files: list[str]) -> tuple[list[str], int]:
    """Complaints of validation against Kubernetes' schemas, and how many resources pass.

    A kind without a schema is only a warning of the program, but a complaint here.
    """
    validate = program("kubernetes-validate")
    lines = run(validate, "--strict", "-k", version, *files).stdout.splitlines()
    passed = [
        line for line in lines if f" against version {version}" in line and " passed " in line
    ]
    return [line for line in lines if line not in passed], len(passed)


@pytest.mark.parametrize("version", VERSIONS)
def test_valid(version: str, rendered: list[Path], tmp_path: Path) -> None:
    files = core(rendered, tmp_path)
    resources = sum(file.count("\nkind: ") for file in (Path(f).read_text() for f in files))
    assert complaints(version, files) == ([], resources)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("readOnlyRootFilesystem:", "readonlyRootFilesystem:"),
        ("maxSurge: 1", "maxSurge: [1]"),
        ("kind: Service\n", "kind: Servize\n"),
        ("apiVersion: policy/v1", "apiVersion: policy/v1beta1"),
    ],
)
def test_validation_refuses(right: str, wrong: str, rendered: list[Path], tmp_path: Path) -> None:
    (file,) = core(rendered[:1], tmp_path)
    text = Path(file).read_text()
    assert right in text
    Path(file).write_text(text.replace(right, wrong))
    assert complaints(VERSIONS[0], [file])[0]


def validate_custom(resources: list[Document]) -> subprocess.CompletedProcess[str]:
    python = Path(program("kubernetes-validate")).with_name("python")
    lines = "".join(json.dumps(resource) + "\n" for resource in resources)
    return run(str(python), str(Path(__file__).with_name("custom_resources.py")), text=lines)


def test_custom_resources_are_valid() -> None:
    program("kubectl")
    found = [r for name in RENDERINGS for r in Resources.of(name).kind(*CUSTOM)]
    assert {resource["kind"] for resource in found} == set(CUSTOM)
    done = validate_custom(found)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("PrometheusRule", '"expr"', '"exprs"'),
        ("ScaledObject", '"metricType"', '"metrictype"'),
        ("ServiceMonitor", '"scrapeTimeout"', '"timeout"'),
    ],
)
def test_custom_resources_with_unknown_fields_are_not(kind: str, right: str, wrong: str) -> None:
    program("kubectl")
    resource = json.dumps(Resources.of("overlay production").kind(kind)[0])
    assert right in resource
    done = validate_custom([json.loads(resource.replace(right, wrong))])
    assert done.returncode == 1, done.stdout


def test_checkov(rendered: list[Path]) -> None:
    checkov = program("checkov")
    files = [part for file in rendered for part in ("--file", str(file))]
    done = run(checkov, "--config-file", "deploy/checkov.yaml", "--framework", "kubernetes", *files)
    assert done.returncode == 0, done.stdout
    passed = [int(count) for count in re.findall(r"Passed checks: (\d+)", done.stdout)]
    assert sum(passed) > 1000, done.stdout


def test_dockerfile() -> None:
    file = "deploy/docker/Dockerfile"
    done = run(program("hadolint"), file)
    assert done.returncode == 0, done.stdout
    checkov = program("checkov")
    options = ("--config-file", "deploy/checkov.yaml", "--framework", "dockerfile")
    done = run(checkov, *options, "--file", file)
    assert done.returncode == 0, done.stdout
    assert "Passed checks" in done.stdout


def test_only_the_image_for_gpus_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    before, _, after = DOCKERFILE.partition("\nFROM serving AS cuda\n")
    assert "NVIDIA" not in before.replace("NVIDIA's", "")
    assert "NVIDIA_VISIBLE_DEVICES=all" in after
    commands: list[list[str]] = []

    def note(command: list[str], **_: Any) -> str:
        commands.append(command)
        return ""

    monkeypatch.setattr(image, "_run", note)
    for torch in image.TORCH_BUILDS:
        image.Build(engine="podman", tag="any", torch=torch, models="train").run()
    targets = [
        command[command.index("--target") + 1] for command in commands if "--target" in command
    ]
    assert targets == ["serving", "cuda"]


def test_command_writes_every_overlay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program("kubectl")
    assert main(["--out", str(tmp_path)]) == 0
    assert {file.stem for file in tmp_path.iterdir()} == set(OVERLAYS)
    assert capsys.readouterr().out.count(".yaml") == len(OVERLAYS)


def test_overlays_and_components_are_documented() -> None:
    assert set(OVERLAYS) == {"local", "cpu", "gpu", "production"}
    for name in COMPONENTS:
        assert (KUBERNETES / "components" / name / "README.md").stat().st_size > 200


def test_configuration_has_one_copy() -> None:
    assert (ROOT / "config.properties").is_symlink()
    program("kubectl")
    (config,) = [
        document["data"]["config.properties"]
        for document in Resources.of("base").kind("ConfigMap")
        if document["metadata"]["name"].startswith("model-server-")
    ]
    assert config == (ROOT / "config.properties").read_text()


# --- Policies for every rendering.


def test_pods_are_restricted(resources: Resources) -> None:
    for name, pod in resources.pods():
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert not [v for v in spec.get("volumes", []) if "hostPath" in v], name
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] >= 10000, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in containers(pod):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
    (namespace,) = resources.kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for account in resources.kind("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_one_namespace(resources: Resources) -> None:
    for document in resources.documents:
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "model-serving", document["metadata"]


def test_images_have_immutable_tags(resources: Resources) -> None:
    for name, pod in resources.pods():
        for container in containers(pod):
            tag = container["image"].rpartition("/")[2].partition(":")[2]
            assert tag, name
            assert tag != "latest", name


def test_memory_requests_equal_limits(resources: Resources) -> None:
    for name, pod in resources.pods():
        for container in containers(pod):
            wanted = container["resources"]
            assert wanted["requests"]["memory"] == wanted["limits"]["memory"], name
            assert wanted["requests"]["cpu"], name


def least_replicas(resources: Resources, deployment: Document) -> int:
    name = deployment["metadata"]["name"]
    for scaler in resources.kind("HorizontalPodAutoscaler"):
        if scaler["spec"]["scaleTargetRef"]["name"] == name:
            return int(scaler["spec"]["minReplicas"])
    for scaler in resources.kind("ScaledObject"):
        if scaler["spec"]["scaleTargetRef"]["name"] == name:
            return int(scaler["spec"]["minReplicaCount"])
    return int(deployment["spec"]["replicas"])


def test_disruption_budgets_are_satisfiable(resources: Resources) -> None:
    budgets = resources.kind("PodDisruptionBudget")
    assert budgets
    for budget in budgets:
        selector = budget["spec"]["selector"]["matchLabels"]
        (deployment,) = [
            d
            for d in resources.kind("Deployment")
            if matches(selector, d["spec"]["template"]["metadata"]["labels"])
        ]
        unavailable = budget["spec"]["maxUnavailable"]
        assert 1 <= unavailable < least_replicas(resources, deployment), budget["metadata"]


def test_each_target_has_one_scaler(resources: Resources) -> None:
    targets = [
        (scaler["spec"]["scaleTargetRef"]["kind"], scaler["spec"]["scaleTargetRef"]["name"])
        for scaler in resources.kind("HorizontalPodAutoscaler", "ScaledObject")
    ]
    assert len(set(targets)) == len(targets)
    for deployment in resources.kind("Deployment"):
        # With `replicas` every apply would undo what the scaler did; with neither there is one pod.
        is_scaled = ("Deployment", deployment["metadata"]["name"]) in targets
        assert is_scaled != ("replicas" in deployment["spec"])


def test_termination_grace_period_covers_the_drain(resources: Resources) -> None:
    for name, pod in resources.pods():
        grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
        for container in pod["spec"]["containers"]:
            hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {})
            before = float(hook["command"][1]) if hook else 0.0
            if container["name"] == SERVER:
                settings = settings_of(container)
                assert grace > before + settings.drain_grace + settings.drain_timeout, name


def test_selectors_match(resources: Resources) -> None:
    for deployment in resources.kind("Deployment"):
        selector = deployment["spec"]["selector"]["matchLabels"]
        own = deployment["spec"]["template"]
        # Only its own pods, or two Deployments would fight over them.
        assert resources.selected(selector) == [own]
        for spread in own["spec"].get("topologySpreadConstraints", []):
            assert matches(spread["labelSelector"]["matchLabels"], own["metadata"]["labels"])
    for document in resources.kind("Service"):
        assert len(resources.selected(document["spec"]["selector"])) == 1, document["metadata"]
    for document in resources.kind("NetworkPolicy"):
        selector = document["spec"]["podSelector"].get("matchLabels", {})
        assert resources.selected(selector), document["metadata"]
    for document in resources.kind("ServiceMonitor"):
        selector = document["spec"]["selector"]["matchLabels"]
        found = [s for s in resources.kind("Service") if matches(selector, s["metadata"]["labels"])]
        assert found
        for service in found:
            offered = {port["name"] for port in service["spec"]["ports"]}
            assert {endpoint["port"] for endpoint in document["spec"]["endpoints"]} <= offered


def test_services_target_ports_of_their_pods(resources: Resources) -> None:
    for service in resources.kind("Service"):
        (pod,) = resources.selected(service["spec"]["selector"])
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports(pod), service["metadata"]


def test_ingresses_target_ports_of_services(resources: Resources) -> None:
    for ingress in resources.kind("Ingress"):
        for path in (path for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]):
            backend = path["backend"]["service"]
            service = resources.named("Service", backend["name"])
            assert backend["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}


def test_routes_lead_to_services_by_tls_alone(resources: Resources) -> None:
    for gateway in resources.kind("Gateway"):
        for listener in gateway["spec"]["listeners"]:
            assert listener["protocol"] == "HTTPS"
            assert {ref["name"] for ref in listener["tls"]["certificateRefs"]} <= SECRETS
    for route in resources.kind("HTTPRoute"):
        (parent,) = route["spec"]["parentRefs"]
        listeners = resources.named("Gateway", parent["name"])["spec"]["listeners"]
        (listener,) = [each for each in listeners if each["name"] == parent["sectionName"]]
        assert route["spec"]["hostnames"] == [listener["hostname"]]
        for backend in (each for rule in route["spec"]["rules"] for each in rule["backendRefs"]):
            service = resources.named("Service", backend["name"])
            assert backend["port"] in {port["port"] for port in service["spec"]["ports"]}
    for ingress in resources.kind("Ingress"):
        annotations = ingress["metadata"]["annotations"]
        assert annotations["traefik.ingress.kubernetes.io/router.entrypoints"] == "websecure"
        assert annotations["nginx.ingress.kubernetes.io/force-ssl-redirect"] == "true"


def test_what_is_exposed_asks_for_tokens_and_limits_rates(resources: Resources) -> None:
    if resources.kind("Gateway", "Ingress"):
        for environment in map(environ, servers(resources)):
            assert environment["TOKEN_FILE"] == "/etc/model-server-tokens/tokens"
            assert int(environment["RATE_LIMIT"]) > 0


def test_network_policies_name_existing_ports(resources: Resources) -> None:
    for policy in resources.kind("NetworkPolicy"):
        spec = policy["spec"]
        own = resources.selected(spec["podSelector"].get("matchLabels", {}))
        towards = [(rule["ports"], own) for rule in spec.get("ingress", [])]
        towards += [
            (rule["ports"], resources.selected(peer["podSelector"]["matchLabels"]))
            for rule in spec.get("egress", [])
            for peer in rule.get("to", [])
            if "namespaceSelector" not in peer
        ]
        for wanted, pods in towards:
            served = {name for pod in pods for name in ports(pod)}
            assert {port["port"] for port in wanted} <= served, spec


def test_long_running_pods_are_probed(resources: Resources) -> None:
    for deployment in resources.kind("Deployment"):
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            assert {"readinessProbe", "livenessProbe"} <= container.keys()
            for probe in (container[key] for key in container if key.endswith("Probe")):
                assert probe["httpGet"]["port"] in ports(deployment["spec"]["template"])
            if container["name"] == SERVER:
                paths = {
                    container[probe]["httpGet"]["path"]
                    for probe in ("startupProbe", "readinessProbe")
                }
                assert paths == {"/readyz"}
                assert container["livenessProbe"]["httpGet"]["path"] == "/livez"


def test_traffic_is_denied_by_default(resources: Resources) -> None:
    closed = resources.named("NetworkPolicy", "default-deny")["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (namespace,) = resources.kind("Namespace")
    for policy in resources.kind("NetworkPolicy"):
        spec = policy["spec"]
        for rule in [*spec.get("ingress", []), *spec.get("egress", [])]:
            peers = rule.get("from", rule.get("to", []))
            # Peers, or the port alone of what may be anywhere.
            assert peers or {port["port"] for port in rule["ports"]} == {53}, policy["metadata"]
            for peer in peers:
                assert peer_exists(peer, resources, namespace), policy["metadata"]


def peer_exists(peer: dict[str, Any], resources: Resources, namespace: Document) -> bool:
    if "namespaceSelector" in peer:
        wanted = peer["namespaceSelector"]["matchLabels"]
        return wanted in OUTSIDE or matches(wanted, namespace["metadata"]["labels"])
    return bool(resources.selected(peer["podSelector"]["matchLabels"]))


def test_references_exist(resources: Resources) -> None:
    for name, pod in resources.pods():
        assert pod["spec"]["serviceAccountName"] in resources.names("ServiceAccount"), name
        volumes = pod["spec"].get("volumes", [])
        for volume in volumes:
            if "configMap" in volume:
                assert volume["configMap"]["name"] in resources.names("ConfigMap"), name
            if "secret" in volume:
                assert volume["secret"]["secretName"] in SECRETS, name
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in CLAIMS, name
        mounted = {m["name"] for c in containers(pod) for m in c.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in volumes}, name
    for ingress in resources.kind("Ingress"):
        for tls in ingress["spec"]["tls"]:
            assert tls["secretName"] in SECRETS
            assert tls["hosts"] == [rule["host"] for rule in ingress["spec"]["rules"]]


def test_everything_can_be_found_by_one_label(resources: Resources) -> None:
    for document in resources.documents:
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "model-serving", document["metadata"]


def test_a_zone_or_node_that_is_down_blocks_no_pod(resources: Resources) -> None:
    for deployment in resources.kind("Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        for spread in spec["topologySpreadConstraints"]:
            assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
        assert list(spec["affinity"]) == ["podAntiAffinity"]
        (term,) = spec["affinity"]["podAntiAffinity"].pop(
            "preferredDuringSchedulingIgnoredDuringExecution"
        )
        assert term["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
        own = deployment["spec"]["template"]["metadata"]["labels"]
        assert matches(term["podAffinityTerm"]["labelSelector"]["matchLabels"], own)


def test_servers_open_no_connections(resources: Resources) -> None:
    for policy in resources.kind("NetworkPolicy"):
        if matches(policy["spec"]["podSelector"].get("matchLabels", {}), {NAME: "model-server"}):
            assert "egress" not in policy["spec"], policy["metadata"]


def test_a_rollout_has_time_for_its_image_and_its_start(resources: Resources) -> None:
    for deployment in resources.kind("Deployment"):
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        probe = container["startupProbe"]
        start = probe["periodSeconds"] * probe["failureThreshold"]
        # At 10 MB/s, after a node was added.
        has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        megabytes, node = (5400, 600) if has_gpu else (1300, 300)
        assert deployment["spec"]["progressDeadlineSeconds"] >= start + megabytes / 10 + node
        assert deployment["spec"]["minReadySeconds"] >= 10


def test_services_have_both_families(resources: Resources) -> None:
    for service in resources.kind("Service"):
        if service["metadata"]["labels"][NAME] == "model-server":
            assert service["spec"]["ipFamilyPolicy"] == "PreferDualStack"
    for settings in map(settings_of, servers(resources)):
        assert (settings.inference.host, settings.telemetry.host) == ("::", "::")


def size(quantity: str) -> int:
    """MiB in a quantity of Kubernetes or of the JVM."""
    match = re.fullmatch(r"(\d+)(Mi|Gi|m|g)", quantity)
    assert match
    return int(match[1]) << (10 if match[2] in {"Gi", "g"} else 0)


def test_memory_covers_all_that_is_in_it(resources: Resources) -> None:
    for name, pod in resources.pods():
        for container in (each for each in pod["spec"]["containers"] if each["name"] == SERVER):
            options = " ".join(settings_of(container).vmargs)
            jvm = re.findall(r"-Xmx(\S+)|-XX:MaxDirectMemorySize=(\S+)", options)
            assert len(jvm) == 2
            tmp = [v["emptyDir"]["sizeLimit"] for v in pod["spec"]["volumes"] if "emptyDir" in v]
            parts = [*(size(heap or direct) for heap, direct in jvm), *map(size, tmp)]
            limit = size(container["resources"]["limits"]["memory"])
            assert sum(parts) + sum(MEASURED_MIB.values()) <= limit, name


# --- Single components.


def test_every_model_server_requests_a_gpu() -> None:
    program("kubectl")
    everything = Resources.of("everything")
    for name in ("model-server", "model-server-canary"):
        spec = everything.named("Deployment", name)["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert environ(container)["REQUIRE_GPU"] == "true"
        assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
        # A label that only a running node has would keep an empty pool of nodes from growing.
        assert "nodeAffinity" not in spec["affinity"]
    for name in OVERLAYS:
        for container in servers(Resources.of(f"overlay {name}")):
            is_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
            assert is_gpu == (name == "gpu")
            assert is_gpu == container["image"].endswith("-cu130")


def test_production_names_its_image_by_digest() -> None:
    program("kubectl")
    images = {
        c["image"] for _, pod in Resources.of("overlay production").pods() for c in containers(pod)
    }
    assert images
    pattern = r"registry\.example\.com/model-server@sha256:[0-9a-f]{64}"
    assert all(re.fullmatch(pattern, name) for name in images)


def parts(documents: Iterable[Document]) -> Any:
    """Documents in an order of their own, as are lists of things with names."""

    def ordered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: ordered(each) for key, each in value.items()}
        if isinstance(value, list):
            return sorted(map(ordered, value), key=lambda each: json.dumps(each, sort_keys=True))
        return value

    return ordered(list(documents))


@pytest.mark.parametrize("pair", [*combinations(EVERYTHING, 2)], ids="-".join)
def test_the_order_of_components_does_not_matter(pair: tuple[str, str]) -> None:
    program("kubectl")
    one, other = (parts(yaml.safe_load_all(render_with(pair[::step]))) for step in (1, -1))
    assert one == other


@pytest.mark.parametrize("step", [1, -1])
def test_two_scalers_do_not_build(step: int) -> None:
    program("kubectl")
    with pytest.raises(ManifestError, match="replicas"):
        render_with(("autoscale-cpu", "autoscale-utilisation")[::step])


def test_another_namespace_and_a_prefix_are_followed() -> None:
    program("kubectl")
    resources = Resources(tuple(yaml.safe_load_all(elsewhere())))
    for document in resources.documents:
        if document["kind"] == "Namespace":
            assert document["metadata"]["name"] == "team-a"
        else:
            assert document["metadata"]["namespace"] == "team-a"
            assert document["metadata"]["name"].startswith("digits-")
    (scaler,) = resources.kind("ScaledObject")
    assert scaler["spec"]["scaleTargetRef"]["name"] == "digits-model-server"
    (trigger,) = scaler["spec"]["triggers"]
    assert re.findall(r'namespace="([^"]*)"', trigger["metadata"]["query"]) == ["team-a"]
    test_selectors_match(resources)
    test_ingresses_target_ports_of_services(resources)
    test_each_target_has_one_scaler(resources)
    for route in resources.kind("HTTPRoute"):
        assert {ref["name"] for ref in route["spec"]["parentRefs"]} <= resources.names("Gateway")
        for backend in (each for rule in route["spec"]["rules"] for each in rule["backendRefs"]):
            assert backend["name"] in resources.names("Service")
    # Rules, dashboard and query name jobs, which are no names of Services.
    jobs = {s["metadata"]["labels"]["model-serving/job"] for s in resources.kind("Service")}
    assert jobs == {"model-server", "model-server-canary"}
    (monitor,) = resources.kind("ServiceMonitor")
    assert monitor["spec"]["jobLabel"] == "model-serving/job"


def test_a_broken_scrape_does_not_scale_down() -> None:
    program("kubectl")
    for name in ("gpu", "production"):
        (scaler,) = Resources.of(f"overlay {name}").kind("ScaledObject")
        (trigger,) = scaler["spec"]["triggers"]
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert scaler["spec"]["fallback"]["behavior"] == "currentReplicasIfHigher"


def test_an_autoscaler_is_taken_over() -> None:
    program("kubectl")
    (scaler,) = Resources.of("overlay production").kind("ScaledObject")
    (before,) = Resources.of("overlay cpu").kind("HorizontalPodAutoscaler")
    configuration = scaler["spec"]["advanced"]["horizontalPodAutoscalerConfig"]
    assert configuration["name"] == before["metadata"]["name"]
    annotations = scaler["metadata"]["annotations"]
    assert annotations["scaledobject.keda.sh/transfer-hpa-ownership"] == "true"


def test_canary_gets_a_tenth_of_the_requests() -> None:
    program("kubectl")
    route = Resources.of("everything").named("HTTPRoute", "model-server")
    shared, testers = route["spec"]["rules"]
    shares = {backend["name"]: backend["weight"] for backend in shared["backendRefs"]}
    assert shares == {"model-server": 9, "model-server-canary": 1}
    assert [backend["name"] for backend in testers["backendRefs"]] == ["model-server-canary"]


def test_overlay_in_the_guide_builds(tmp_path_factory: pytest.TempPathFactory) -> None:
    program("kubectl")
    guide = (ROOT / "deploy" / "README.md").read_text()
    (text,) = re.findall(r"```yaml\n# kustomization.yaml\n(.*?)```", guide, re.DOTALL)
    remote = "github.com/example/torchserve-mnist-xor//deploy/kubernetes/overlays/gpu?ref=main"
    assert remote in text
    directory = tmp_path_factory.mktemp("overlay")
    overlay = os.path.relpath(KUBERNETES / "overlays" / "gpu", directory.resolve())
    (directory / "kustomization.yaml").write_text(text.replace(remote, overlay))
    resources = Resources(tuple(yaml.safe_load_all(render(directory))))
    images = {c["image"] for _, pod in resources.pods() for c in containers(pod)}
    assert images == {
        "registry.your-company.example/model-server:0.1.0-cu130",
    }
    route = resources.named("HTTPRoute", "model-server")
    assert route["spec"]["hostnames"] == ["digits.your-company.example"]
    test_routes_lead_to_services_by_tls_alone(resources)
