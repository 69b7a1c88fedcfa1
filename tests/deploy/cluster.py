"""The environment of a rendering's pods: ConfigMaps, Secrets and volumes."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

from tests.deploy.containers import Pod
from tests.deploy.resources import Resources


def substitute(text: str, old: str, new: str) -> str:
    """Replace a text that must occur exactly once."""
    assert text.count(old) == 1, old
    return text.replace(old, new)


class Cluster:
    """A rendering with its ConfigMaps, and with what an operator creates by hand.

    Args:
        rendering: one of `RENDERINGS`.
        directory: for all files.
        given: directories in place of Secrets and claims, by name.

    Attributes:
        resources: the rendering.
        sources: directories by name, of ConfigMaps and those given.
    """

    def __init__(
        self, rendering: str, directory: Path, given: Mapping[str, Path] | None = None
    ) -> None:
        self.resources = Resources.of(rendering)
        self._directory = directory
        self.sources = dict(given or {})
        self._pods = itertools.count()
        for document in self.resources.kind("ConfigMap"):
            name = document["metadata"]["name"]
            self.sources[name] = directory / name
            self.sources[name].mkdir()
            for file, text in document["data"].items():
                (self.sources[name] / file).write_text(text)

    def change(self, file: str, old: str, new: str) -> None:
        """Replace a text that occurs exactly once in a ConfigMap's file."""
        (path,) = self._directory.glob(f"*/{file}")
        path.write_text(substitute(path.read_text(), old, new))

    def pod(
        self, workload: str, *changes: tuple[str, str], hosts: Mapping[str, str] | None = None
    ) -> Pod:
        """A pod of a workload, with some texts of its template replaced."""
        text = json.dumps(dict(self.resources.pods())[workload])
        for old, new in changes:
            text = substitute(text, old, new)
        directory = self._directory / f"pod-{next(self._pods)}"
        directory.mkdir()
        return Pod(json.loads(text), directory, self.sources, hosts or {})
