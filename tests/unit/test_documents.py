"""What the documents point at is there."""

import re
from pathlib import Path

import pytest

from tests.serving import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "model_store" / "README.md", *ROOT.glob("deploy/**/*.md")]


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links(file: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", file.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = file.parent / path if path else file
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link
