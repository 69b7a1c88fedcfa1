"""Rendered manifests as documents, and queries over them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from deploy.manifests import COMPONENTS, KUBERNETES, OVERLAYS, render, render_with

Document = dict[str, Any]
MONITORING = KUBERNETES.parent / "monitoring"
_RULES = sorted((MONITORING / "prometheus").glob("*-rules.yaml"))
# All that go together.
EVERYTHING = (
    "httproute-canary",
    "ingress",
    "gpu",
    "model-volume",
    "monitoring",
    "autoscale-utilisation",
)
RENDERINGS = (
    "base",
    *(f"overlay {name}" for name in OVERLAYS),
    *(f"component {name}" for name in COMPONENTS),
    "everything",
)


@cache
def manifest(name: str) -> str:
    """The YAML of one of `RENDERINGS`."""
    kind, _, which = name.partition(" ")
    if kind == "overlay":
        return render(KUBERNETES / "overlays" / which)
    if kind == "base":
        return render(KUBERNETES / "base")
    return render_with((which,) if which else EVERYTHING)


@cache
def elsewhere() -> str:
    """The YAML of everything in namespace team-a, each name with the prefix `digits-`."""
    more = ["namespace: team-a", "namePrefix: digits-", "transformers:"]
    more += ["  - ../components/autoscale-utilisation/namespace"]
    return render_with(EVERYTHING, more)


@dataclass(frozen=True)
class Resources:
    """The documents of one rendering."""

    documents: tuple[Document, ...]

    @classmethod
    @cache
    def of(cls, name: str) -> "Resources":
        return cls(tuple(yaml.safe_load_all(manifest(name))))

    def kind(self, *kinds: str) -> list[Document]:
        return [document for document in self.documents if document["kind"] in kinds]

    def named(self, kind: str, name: str) -> Document:
        (found,) = [d for d in self.kind(kind) if d["metadata"]["name"] == name]
        return found

    def names(self, kind: str) -> set[str]:
        return {document["metadata"]["name"] for document in self.kind(kind)}

    @property
    def workloads(self) -> list[Document]:
        return self.kind("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")

    def pods(self) -> Iterator[tuple[str, Document]]:
        """Each workload's name and the template of its pods."""
        for workload in self.workloads:
            yield workload["metadata"]["name"], workload["spec"]["template"]

    def selected(self, selector: Mapping[str, str]) -> list[Document]:
        """Pod templates that match a selector."""
        return [pod for _, pod in self.pods() if matches(selector, pod["metadata"]["labels"])]


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


def containers(pod: Document) -> list[Document]:
    """All containers of a pod template, init containers included."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def ports(pod: Document) -> dict[str, int]:
    """Port numbers by name."""
    return {
        port["name"]: port["containerPort"]
        for container in containers(pod)
        for port in container.get("ports", [])
    }


def rules() -> list[Document]:
    """All recording and alerting rules."""
    groups = (group for file in _RULES for group in _rule_spec(file)["groups"])
    return [rule for group in groups for rule in group["rules"]]


def write_rules(directory: Path) -> None:
    """Write the rules as Prometheus reads them, without the operator's envelope."""
    for file in _RULES:
        (directory / file.name).write_text(yaml.safe_dump(_rule_spec(file)))


def _rule_spec(file: Path) -> Document:
    spec: Document = yaml.safe_load(file.read_text())["spec"]
    return spec
