"""Links and `make` targets in the documents exist."""

import re
from pathlib import Path

import pytest

from tests.serving import ROOT

DOCUMENTS = [
    *ROOT.glob("*.md"),
    ROOT / "model_store" / "README.md",
    ROOT / "training" / "README.md",
    *ROOT.glob("deploy/**/*.md"),
    *ROOT.glob("tests/**/*.md"),
]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub derives from headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
class TestDocument:
    def test_links(self, file: Path) -> None:
        for link in re.findall(r"\]\(([^)]+)\)", file.read_text()):
            if link.startswith("https://"):
                continue
            path, _, anchor = link.partition("#")
            target = file.parent / path if path else file
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text()), link

    def test_make_targets(self, file: Path) -> None:
        found = re.findall(r"(?:`|^\$ )make ([a-z-]+)", file.read_text(), re.MULTILINE)
        assert set(found) <= TARGETS
