"""The report of `make test-reliability`: its tables, and what it says was mended."""

import tomllib

import pytest

from tests.reliability import record, report
from tests.serving import ROOT

FOUND = tomllib.loads(report.FOUND.read_text())["found"]


def test_rows_with_different_columns_share_a_table() -> None:
    rows = [{"fault": "a", "sent": 1234, "notes": "x|y"}, {"fault": "b", "seconds": 0.12345}]
    assert report.table(rows).splitlines() == [
        "| fault | sent | seconds | notes |",
        "| --- | --- | --- | --- |",
        "| a | 1,234 |  | x\\|y |",
        "| b |  | 0.123 |  |",
    ]


def test_a_row_replaces_the_one_before_of_the_same_case(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "DIRECTORY", tmp_path)
    monkeypatch.setattr(report, "ROWS", tmp_path)
    section = record.Section(1, "Kills & stops", "What was done.")
    section.record({"fault": "a", "sent": 1})
    section.record({"fault": "b", "sent": 2})
    section.record({"fault": "a", "sent": 3}, "again")
    assert section.file.name == "01-kills-stops.json"
    monkeypatch.setattr(report, "README", section.file.with_name("README.md"))
    report.write()
    text = report.README.read_text()
    assert "## Kills & stops\n\nWhat was done.\n\n| fault | sent | notes |\n" in text
    assert "| b | 2 |  |\n| a | 3 | again |\n" in text


@pytest.mark.parametrize("defect", FOUND, ids=lambda defect: defect["test"])
def test_what_was_mended_has_a_test(defect: dict[str, str]) -> None:
    assert defect.keys() == {"fault", "mended", "test"}
    file, *names = defect["test"].split("::")
    text = (ROOT / file).read_text()
    assert all(f"def {name}(" in text or f"class {name}" in text for name in names)
