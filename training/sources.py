"""Which source files a model's weights and its archive depend on."""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from training.errors import TrainingError

ROOT = Path(__file__).resolve().parent.parent


class SourceError(TrainingError):
    """A model lacks a module; the message names the file."""


def handler_files(name: str) -> list[Path]:
    """The handler module of a model, then the modules of `handler/` that it needs, sorted.

    Raises:
        SourceError: there is no handler module.
    """
    entry = _module("handler", name)
    return [entry, *sorted(_with_imports([entry], ("handler",)) - {entry})]


def training_files(name: str) -> list[Path]:
    """The files that decide a model's weights: its module, the pipeline, and what they import.

    Modules of `handler/` are among them only if one of these computes something with them.

    Raises:
        SourceError: there is no training module.
    """
    entries = [_module("training", name), _module("training", "pipeline")]
    return sorted(_with_imports(entries, ("handler", "training")))


def training_sha256(name: str) -> str:
    """Digest of torch's version and of the code in `training_files`.

    Comments, docstrings and formatting do not count, nor does torch's build (`+cpu`).

    Raises:
        SourceError: there is no training module.
    """
    torch_version = metadata.version("torch").partition("+")[0]
    digest = hashlib.sha256(f"torch=={torch_version}\0".encode())
    for file in training_files(name):
        digest.update(f"{file.relative_to(ROOT)}\0{_code(file)}\0".encode())
    return digest.hexdigest()


def _module(package: str, name: str) -> Path:
    file = ROOT / package / f"{name}.py"
    if not file.is_file():
        raise SourceError(f"model {name} has no {package} module {package}/{name}.py")
    return file


def _with_imports(entries: Iterable[Path], packages: tuple[str, ...]) -> set[Path]:
    """Files, and all that they import from some packages of this repository, however indirectly."""
    found: set[Path] = set()
    unread = list(entries)
    while unread:
        file = unread.pop()
        if file not in found:
            found.add(file)
            unread += (
                imported
                for name in _imported_names(file)
                if name.partition(".")[0] in packages
                for imported in _files(name)
            )
    return found


def _imported_names(file: Path) -> Iterator[str]:
    """Dotted names of what a file imports; `from a import b` may mean module `a.b`, or `a`."""
    package = file.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Level 1 is `from .module`, level 2 `from ..module`.
            parents = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*parents, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _files(name: str) -> Iterator[Path]:
    """The files that Python runs to import a dotted name, those of its parents included."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        path = ROOT.joinpath(*parts[:length])
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                yield file


def _code(file: Path) -> str:
    """The syntax tree of a file, without docstrings."""
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)
