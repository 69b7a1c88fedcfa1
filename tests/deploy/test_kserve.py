"""KServe's resources: what its Python package reads of them, and what the Deployment has too."""

import json
import subprocess

import yaml

from deploy.manifests import ROOT
from tests.deploy.resources import Document, Resources
from tests.integration.test_clients import PYTHON

FILES = ("servingruntime", "inferenceservice")


def resource(name: str) -> Document:
    return dict(yaml.safe_load((ROOT / "deploy" / "kserve" / f"{name}.yaml").read_text()))


def test_kserve_knows_every_field() -> None:
    assert PYTHON.is_file(), "no .venv-clients: `make test` installs it"
    command = [str(PYTHON), "-m", "tests.integration.clients.kserve_resources"]
    command += [f"deploy/kserve/{name}.yaml" for name in FILES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runtime, service = json.loads(done.stdout)
    # Its models write a name that a model in an InferenceService has only as a container.
    assert service["spec"]["predictor"]["model"].pop("name") == ""
    assert [runtime, service] == [resource(name) for name in FILES]


def test_the_service_is_of_the_runtime() -> None:
    runtime, service = map(resource, FILES)
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    formats = runtime["spec"]["supportedModelFormats"]
    assert model["modelFormat"] in formats
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


def test_its_pods_are_those_of_the_deployment() -> None:
    """But for the port of probes, the models, and the configuration, which the image has too."""
    runtime, service = map(resource, FILES)
    (deployment,) = Resources.of("base").kind("Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (own,), (other,) = runtime["spec"]["containers"], pod["containers"]
    assert own["image"] == other["image"]
    assert own["env"] == other["env"]
    assert own["resources"] == other["resources"]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        numbers = [{k: v for k, v in c[kind].items() if k != "httpGet"} for c in (own, other)]
        assert numbers[0] == numbers[1]
    inherited = ("runAsNonRoot", "runAsUser", "runAsGroup", "seccompProfile")
    whole = {k: pod["securityContext"][k] for k in inherited} | other["securityContext"]
    assert own["securityContext"] == whole
    assert runtime["spec"]["volumes"] == [v for v in pod["volumes"] if v["name"] == "tmp"]
    predictor = service["spec"]["predictor"]
    grace = "terminationGracePeriodSeconds"
    assert predictor[grace] == pod[grace]
    assert predictor["minReplicas"] == deployment["spec"]["replicas"]
