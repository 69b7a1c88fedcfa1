"""`python -m deploy.image`: build the images, labelled with their contents."""

import argparse
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENGINES = ("docker", "podman")
TARGETS = {
    "serving": "model-server",
    "loadtest": "model-server-loadtest",
    "training": "model-server-training",
}
TORCH_INDEX = "https://download.pytorch.org/whl"
# Those with hashes in requirements/torch.txt.
TORCH_BUILDS = ("cpu", "cu130")
# Runs in the image, so that it lists the archives there, wherever they were made.
_DIGESTS = """
from pathlib import Path
from server.store import find_archives
for archive in find_archives(Path("model_store"), ()):
    print(archive.name, archive.card.torchscript_sha256)
"""


class ImageError(Exception):
    """An image cannot be built; the message says why."""


def find_engine() -> str:
    """The first of `ENGINES` that is installed.

    Raises:
        ImageError: none is.
    """
    for engine in ENGINES:
        if shutil.which(engine):
            return engine
    raise ImageError(f"no container engine: install one of {', '.join(ENGINES)}")


@dataclass(frozen=True, kw_only=True)
class Build:
    """One build.

    Attributes:
        engine: docker or podman, or the path of one.
        tag: of the image.
        target: stage of the Dockerfile, one of `TARGETS`.
        torch: torch's build, one of `TORCH_BUILDS`.
        models: `store` for the archives in model_store/, `train` to make them in the build.
        context: this repository, or a copy of it with other archives.
        options: further options of the engine's `build`.
    """

    engine: str
    tag: str
    target: str = "serving"
    torch: str = "cpu"
    models: str = "store"
    context: Path = ROOT
    options: Sequence[str] = ()

    def run(self) -> dict[str, str]:
        """Build the image, and label it.

        Returns:
            The labels: OCI's, and `model.NAME.sha256`, the digest of each model's TorchScript as
            in `inference_model_info`.

        Raises:
            ImageError: the engine failed; it has printed why.
        """
        serving = self.target == "serving"
        store = self.context / "model_store"
        if serving and self.models == "store" and not list(store.glob("*.mar")):
            raise ImageError(f"{store.name} is empty: run `make train`, or use --models train")
        labels = _labels()
        # Podman's own format has no health checks.
        podman = Path(self.engine).name == "podman"
        command = [self.engine, "build", *(["--format", "docker"] if podman else [])]
        command += ["--tag", self.tag]
        target = "cuda" if serving and self.torch != "cpu" else self.target
        stage = ["--file", "deploy/docker/Dockerfile", "--target", target]
        stage += ["--build-arg", f"TORCH_INDEX={TORCH_INDEX}/{self.torch}"]
        stage += ["--build-arg", f"MODELS={self.models}"]
        _run([*command, *stage, *self.options, "."], directory=self.context)
        labels |= _digests(self.engine, self.tag) if serving else {}
        labelled = [part for key, value in labels.items() for part in ("--label", f"{key}={value}")]
        _run([*command, *labelled, "-"], text=f"FROM {self.tag}\n")
        return labels


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def _labels() -> dict[str, str]:
    project = _project()
    commit = _output(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
    return {
        "org.opencontainers.image.title": project["name"],
        "org.opencontainers.image.description": project["description"],
        "org.opencontainers.image.version": project["version"],
        "org.opencontainers.image.licenses": project["license"],
        "org.opencontainers.image.revision": commit.strip(),
    }


def _digests(engine: str, tag: str) -> dict[str, str]:
    command = [engine, "run", "--rm", "--no-healthcheck", "--network=none"]
    lines = _output([*command, "--entrypoint=python", tag, "-c", _DIGESTS]).splitlines()
    return {f"model.{name}.sha256": digest for name, digest in map(str.split, lines)}


def _output(command: list[str]) -> str:
    return _run(command, stdout=subprocess.PIPE)


def _run(
    command: list[str],
    text: str | None = None,
    directory: Path = ROOT,
    stdout: int | None = None,
) -> str:
    """Run a command that reports its own errors, and return its output where that is piped."""
    done = subprocess.run(command, cwd=directory, check=False, input=text, stdout=stdout, text=True)
    if done.returncode:
        raise ImageError(f"{' '.join(command[:2])} failed with exit code {done.returncode}")
    return done.stdout or ""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 built, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.image",
        description=__doc__,
        epilog="Other options, such as --build-arg BASE_IMAGE=..., go to the engine's build.",
    )
    parser.add_argument("--engine", help="docker or podman (default: the first installed)")
    parser.add_argument("--target", choices=TARGETS, default="serving")
    parser.add_argument("--tag", help="of the image (default: model-server:VERSION)")
    parser.add_argument(
        "--torch",
        default="cpu",
        choices=TORCH_BUILDS,
        help="torch's build: cu130 for GPUs (default: %(default)s)",
    )
    parser.add_argument(
        "--models",
        choices=("store", "train"),
        default="store",
        help="take the archives in model_store/, or train in the build (default: %(default)s)",
    )
    options, others = parser.parse_known_args(arguments)
    suffix = "" if options.torch == "cpu" or options.target != "serving" else f"-{options.torch}"
    tag = options.tag or f"{TARGETS[options.target]}:{_project()['version']}{suffix}"
    try:
        labels = Build(
            engine=options.engine or find_engine(),
            tag=tag,
            target=options.target,
            torch=options.torch,
            models=options.models,
            options=others,
        ).run()
    except ImageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"built {tag}")
    for key, value in labels.items():
        print(f"  {key}={value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
