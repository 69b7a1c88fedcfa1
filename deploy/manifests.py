"""`python -m deploy.manifests`: render every overlay, for review and for whoever applies files."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = tuple(sorted(path.name for path in (KUBERNETES / "overlays").iterdir()))
COMPONENTS = tuple(sorted(path.name for path in (KUBERNETES / "components").iterdir()))
# Python packages that bring programs, in an environment of their own: their pins conflict with the
# service's.
_PROGRAMS = ROOT / ".venv-deploy" / "bin"


class ManifestError(Exception):
    """Something cannot be rendered; the message is kubectl's."""


def find_program(name: str) -> str | None:
    """The path of a program for deploy/: in the environment for them, or else on PATH."""
    return shutil.which(name, path=f"{_PROGRAMS}{os.pathsep}{os.environ['PATH']}")


def render(directory: Path) -> str:
    """Render a kustomization to YAML.

    Raises:
        ManifestError: it does not build, or there is no kubectl.
    """
    kubectl = find_program("kubectl")
    if kubectl is None:
        raise ManifestError("kubectl is not installed: run `make manifests`")
    command = [kubectl, "kustomize", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ManifestError(f"{directory.name}: {done.stderr.strip()}")
    return done.stdout


def render_with(components: Sequence[str], more: Sequence[str] = ()) -> str:
    """Render the base with some components to YAML.

    Args:
        components: in this order.
        more: further lines of the kustomization.

    Raises:
        ManifestError: it does not build, or there is no kubectl.
    """
    with tempfile.TemporaryDirectory(dir=KUBERNETES, prefix=".render-") as directory:
        lines = ["apiVersion: kustomize.config.k8s.io/v1beta1", "kind: Kustomization"]
        lines += ["resources:", "  - ../base"]
        # A canary has a Deployment and a Service of its own.
        lines += ["  - ../canary"] if any("canary" in name for name in components) else []
        lines += ["components:", *(f"  - ../components/{name}" for name in components), *more]
        (Path(directory) / "kustomization.yaml").write_text("\n".join(lines))
        return render(Path(directory))


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 rendered, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m deploy.manifests", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("artifacts/manifests"),
        metavar="DIR",
        help="where OVERLAY.yaml are written (default: %(default)s)",
    )
    out: Path = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    try:
        for overlay in OVERLAYS:
            file = out / f"{overlay}.yaml"
            file.write_text(render(KUBERNETES / "overlays" / overlay))
            print(file)
    except ManifestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
