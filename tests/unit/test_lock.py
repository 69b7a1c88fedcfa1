"""requirements/ locks what pyproject.toml requires."""

import re
import tomllib
from functools import cache
from importlib import metadata
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.serving import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUPS = PYPROJECT["dependency-groups"]
ENTRY = re.compile(
    r"""^(?P<name>\S+)==(?P<version>\S+)
        (?:\ \\\n\ +--hash=sha256:[0-9a-f]{64})+\n
        (?P<comment>(?:\ +\#.*\n)*)""",
    re.MULTILINE | re.VERBOSE,
)


@cache
def locked(lock: str) -> dict[str, str]:
    """Version by name. Every entry has hashes, and the file has nothing but entries."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    assert not re.sub(r"^#.*\n|^\n", "", ENTRY.sub("", text), flags=re.MULTILINE)
    return {entry["name"]: entry["version"] for entry in ENTRY.finditer(text)}


def direct(lock: str) -> set[str]:
    """Names of direct dependencies, by the lock's comments."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    return {entry["name"] for entry in ENTRY.finditer(text) if "pyproject.toml" in entry["comment"]}


def parse(group: list[Any]) -> list[Requirement]:
    included = [
        requirement
        for part in group
        if isinstance(part, dict)
        for requirement in parse(GROUPS[part["include-group"]])
    ]
    return included + [Requirement(part) for part in group if isinstance(part, str)]


@pytest.mark.parametrize("name", ["serving", *GROUPS])
def test_every_requirement_is_locked(name: str) -> None:
    dependencies = parse(PYPROJECT["project"]["dependencies"])
    requirements = parse(GROUPS[name]) if name != "serving" else dependencies
    requirements += dependencies if name == "dev" else []
    pinned = {requirement.name for requirement in dependencies}
    versions = locked(name) | locked("torch")
    for requirement in requirements:
        assert str(requirement.specifier).startswith("==") or requirement.name in pinned
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    asked = {canonicalize_name(requirement.name) for requirement in requirements}
    assert direct(name) == asked - {"torch"}


# `clients` and `deploy` have environments of their own.
@pytest.mark.parametrize("name", ["cuda", "loadtest", "serving", "training"])
def test_a_package_has_one_version(name: str) -> None:
    everywhere = locked("dev")
    for package, version in locked(name).items():
        assert everywhere.get(package, version) == version, package


def test_every_file_is_a_lock_of_something() -> None:
    files = {file.stem for file in (ROOT / "requirements").glob("*.txt")}
    assert files == {"cuda", "serving", "torch", *GROUPS}


def test_requirements_of_torch_match_its_metadata() -> None:
    (declared,) = PYPROJECT["tool"]["uv"]["dependency-metadata"]
    assert locked("torch") == {"torch": declared["version"]}
    # Requirements with a condition are extras and libraries of the CUDA build.
    needed = [line for line in metadata.requires("torch") or [] if ";" not in line]
    assert sorted(declared["requires-dist"]) == sorted(needed)
