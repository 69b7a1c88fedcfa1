import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.vex import VexError, document, main, statements
from tests.serving import ROOT

SECURITY = (ROOT / "SECURITY.md").read_text()


def test_every_vulnerability_of_the_table_has_one_statement() -> None:
    made = statements(SECURITY)
    names = [each["vulnerability"]["name"] for each in made]
    assert sorted(names) == sorted(set(re.findall(r"CVE-\d+-\d+", SECURITY)))
    by_name = {each["vulnerability"]["name"]: each for each in made}
    assert by_name["CVE-2023-43654"]["status"] == "fixed"
    smuggling = by_name["CVE-2021-43797"]
    assert smuggling["status"] == "not_affected"
    assert smuggling["justification"] == "inline_mitigations_already_exist"
    assert smuggling["impact_statement"].startswith("An attack needs HTTP/1")


def test_document() -> None:
    made = document(SECURITY, datetime(2026, 11, 26, 12, tzinfo=UTC))
    assert made["timestamp"] == "2026-11-26T12:00:00+00:00"
    assert made["@id"].endswith("model-server-20261126T120000Z")
    for statement in made["statements"]:
        (product,) = statement["products"]
        assert product["@id"] == "pkg:oci/model-server"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# Security", "has no table"),
        (SECURITY.replace("inline_mitigations_already_exist", "fine"), "CVE-2021-43797: 'fine'"),
    ],
)
def test_a_table_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(VexError, match=message):
        statements(text)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "vex.json"
    assert main(["--out", str(file)]) == 0
    assert main([]) == 0
    assert json.loads(file.read_text()) == json.loads(capsys.readouterr().out)
