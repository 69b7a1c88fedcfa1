"""What pods of a rendering find around them."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

from tests.deploy.containers import Pod
from tests.deploy.resources import Resources


def substitute(text: str, old: str, new: str) -> str:
    """Other text in one place, which has to be there."""
    assert text.count(old) == 1, old
    return text.replace(old, new)


class Cluster:
    """What pods of a rendering find: its ConfigMaps, and what an operator makes by hand.

    Args:
        rendering: one of `RENDERINGS`.
        directory: for all files.
        given: directories that play Secrets and claims, by name.

    Attributes:
        resources: the rendering.
        sources: all the directories by name, those that were given and ConfigMaps.
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
        """Other text in one place of a ConfigMap's file, which has to be there."""
        (path,) = self._directory.glob(f"*/{file}")
        path.write_text(substitute(path.read_text(), old, new))

    def pod(
        self, workload: str, *changes: tuple[str, str], hosts: Mapping[str, str] | None = None
    ) -> Pod:
        """One of a workload, whose template has other text in some places."""
        text = json.dumps(dict(self.resources.pods())[workload])
        for old, new in changes:
            text = substitute(text, old, new)
        directory = self._directory / f"pod-{next(self._pods)}"
        directory.mkdir()
        return Pod(json.loads(text), directory, self.sources, hosts or {})
