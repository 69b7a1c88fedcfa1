"""`python -m deploy.vex`: SECURITY.md's table of vulnerabilities as OpenVEX 0.2.0.

Scanners that read it (trivy, grype, docker scout) leave out what the table says is covered.
"""

import argparse
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.image import ROOT, TARGETS

_CVE = re.compile(r"CVE-\d{4}-\d{4,}")
_HEADER = "| an attack needs | such as | covered by | in VEX |"
# https://github.com/openvex/spec, "Status Justifications"; `fixed` is a status of its own.
_JUSTIFICATIONS = (
    "component_not_present",
    "vulnerable_code_not_present",
    "vulnerable_code_not_in_execute_path",
    "vulnerable_code_cannot_be_controlled_by_adversary",
    "inline_mitigations_already_exist",
)


class VexError(Exception):
    """The table cannot be read; the message names the row."""


def statements(security: str) -> list[dict[str, Any]]:
    """One statement for each vulnerability that the table names.

    Args:
        security: the text of SECURITY.md.

    Raises:
        VexError: there is no table, or a row's last cell is no justification.
    """
    _, found, rest = security.partition(f"{_HEADER}\n")
    if not found:
        raise VexError(f"SECURITY.md has no table with the header {_HEADER}")
    made: list[dict[str, Any]] = []
    for line in rest.splitlines()[1:]:
        if not line.startswith("|"):
            break
        needs, such_as, cover, verdict = (cell.strip() for cell in line.strip("|").split("|"))
        names = _CVE.findall(such_as)
        verdict = verdict.strip("`")
        if not names:
            continue
        if verdict != "fixed" and verdict not in _JUSTIFICATIONS:
            raise VexError(f"{names[0]}: {verdict!r} is none of {', '.join(_JUSTIFICATIONS)}")
        reason = (
            {"status": "fixed"}
            if verdict == "fixed"
            else {
                "status": "not_affected",
                "justification": verdict,
                "impact_statement": f"An attack needs {needs}. {cover[0].upper()}{cover[1:]}.",
            }
        )
        made += [{"vulnerability": {"name": name}, **reason} for name in names]
    return made


def document(security: str, moment: datetime) -> dict[str, Any]:
    """The whole statement.

    Args:
        security: the text of SECURITY.md.
        moment: when that was written.

    Raises:
        VexError: as `statements`.
    """
    image = TARGETS["serving"]
    product = {
        "@id": f"pkg:oci/{image}",
        "subcomponents": [{"@id": "pkg:pypi/torchserve@0.12.0"}],
    }
    return {
        "@context": "https://openvex.dev/ns/v0.2.0",
        "@id": f"https://openvex.dev/docs/{image}-{moment:%Y%m%dT%H%M%SZ}",
        "author": "the maintainers of model-server",
        "timestamp": moment.isoformat(),
        "version": 1,
        "statements": [each | {"products": [product]} for each in statements(security)],
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 written, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m deploy.vex", description=__doc__)
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")
    out: Path | None = parser.parse_args(arguments).out
    file = ROOT / "SECURITY.md"
    try:
        text = json.dumps(document(file.read_text(), _written(file)), indent=2)
    except VexError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if out:
        out.write_text(text + "\n")
    else:
        print(text)
    return 0


def _written(file: Path) -> datetime:
    """When a file was committed last, so that one text always makes the same document."""
    command = ["git", "log", "-1", "--format=%ct", "--", file.name]
    done = subprocess.run(command, cwd=file.parent, check=False, capture_output=True, text=True)
    seconds = float(done.stdout or file.stat().st_mtime)
    return datetime.fromtimestamp(seconds, UTC)


if __name__ == "__main__":
    sys.exit(main())
