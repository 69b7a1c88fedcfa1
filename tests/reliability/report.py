"""`python -m tests.reliability.report`: write README.md from what the long cases recorded."""

import argparse
import json
import shutil
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.serving import ROOT

ROWS = ROOT / "artifacts" / "reliability" / "long"
HERE = Path(__file__).parent
FOUND = HERE / "found.toml"
README = HERE / "README.md"
HEAD = """# What becomes of requests when things go wrong

Generated from the figures that the cases kept when they ran last; do not edit. `make
test-reliability` runs all of them and writes this page: real servers on loopback, with the models
and the settings of `make serve` unless a row says otherwise. `make test` runs every case as well,
shorter. A case fails if a request is lost that its text does not allow for.

A request is *lost* if its connection ended without an answer, and *refused* if it was answered 503
with `Retry-After`, or 429 or 504. Every number counts requests that clients sent, as they saw them.
"""


def write() -> None:
    """Write the report from `ROWS`, and copy its pictures beside it.

    Raises:
        FileNotFoundError: nothing was recorded.
    """
    documents = [json.loads(file.read_text()) for file in sorted(ROWS.glob("*.json"))]
    if not documents:
        raise FileNotFoundError(f"{ROWS} has no figures: `make test-reliability` measures them")
    for document in documents:
        if document["picture"]:
            shutil.copy(ROWS / document["picture"], HERE)
    README.write_text(render(documents, tomllib.loads(FOUND.read_text())["found"]))


def render(documents: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, str]]) -> str:
    """The report in Markdown.

    Args:
        documents: what `Section.record` wrote, in the order of the report.
        found: defects with their `fault`, `mended` and `test`.
    """
    parts = [HEAD, _measured(documents)]
    for document in documents:
        parts += [f"## {document['title']}\n", f"{document['text'].strip()}\n"]
        parts.append(table(document["rows"]))
        low, high = document["load"]
        parts.append(f"The machine's load average meanwhile: {low:.0f} to {high:.0f}.\n")
        if document["picture"]:
            parts.append(f"![{document['title']}]({document['picture']})\n")
    parts.append("## What was found and mended\n")
    parts.append(
        table(
            [
                {"fault": each["fault"], "mended": each["mended"], "test": f"`{each['test']}`"}
                for each in found
            ]
        )
    )
    return "\n".join(parts)


def _measured(documents: Sequence[Mapping[str, Any]]) -> str:
    """On what machines and days the figures were measured."""
    machines = {
        "{cores} cores, {memory} of memory, {system}, {date}".format(**document["machine"])
        for document in documents
    }
    return f"Measured on {'; and on '.join(sorted(machines))}, generators and servers together.\n"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table with the columns of all of them, in order of appearance."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if "notes" in columns:
        columns = [*(column for column in columns if column != "notes"), "notes"]
    lines = [columns, ["---"] * len(columns)]
    lines += [[cell(row.get(column)) for column in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(value: Any) -> str:
    """A cell's text: numbers with separators, three digits where they are not whole."""
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    # Where somebody's checkout lies is nobody else's business.
    return str(value).replace(str(ROOT), "CHECKOUT").replace("|", "\\|")


def main() -> int:
    """Write the report; 1 if there are no figures."""
    argparse.ArgumentParser(prog="python -m tests.reliability.report", description=__doc__)
    try:
        write()
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {README.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
