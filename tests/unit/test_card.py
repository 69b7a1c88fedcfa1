import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from handler.card import CARD_FILE, SCHEMA, CardError, ModelCard, read_card
from tests.untrained import make_card


def written(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(make_card("mnist").to_json())
    return document | changes


def test_a_card_is_read_as_it_was_written() -> None:
    card = make_card("mnist", metrics={"test": {"accuracy": 0.5}}, settings={"hidden": [512]})
    assert ModelCard.from_json(card.to_json()) == card


def test_unknown_fields_are_ignored() -> None:
    document = written(temperature=1.5)
    assert ModelCard.from_json(json.dumps(document)) == make_card("mnist")


def test_a_field_with_a_default_may_be_missing() -> None:
    document = written()
    del document["settings"]
    assert ModelCard.from_json(json.dumps(document)) == make_card("mnist")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schema": SCHEMA + 1},
            "schema 2, so the archive is too new: this release reads schema 1",
        ),
        (
            {"schema": SCHEMA - 1},
            "schema 0, so the archive is too old: this release reads schema 1",
        ),
        ({"schema": None}, "no schema number, so the archive is too old: this release reads"),
        ({"schema": "1"}, "schema '1', not a number"),
        ({"schema": True}, "schema True, not a number"),
    ],
)
def test_another_schema(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CardError, match=re.escape(message)) as caught:
        ModelCard.from_json(json.dumps(written(**changes)))
    assert "`python -m training pack`" in str(caught.value)


def test_missing_fields_are_named() -> None:
    document = written()
    del document["seed"], document["classes"]
    with pytest.raises(CardError, match=r"model\.json lacks classes, seed; pack the archive again"):
        ModelCard.from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"[", "not valid JSON"), (b"[]", "not a JSON object"), (b"\xff", "not valid JSON")],
)
def test_not_a_card(text: bytes, message: str) -> None:
    with pytest.raises(CardError, match=message):
        ModelCard.from_json(text)


def test_the_card_of_an_archive(tmp_path: Path) -> None:
    file = tmp_path / "m.mar"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("handler.py", "")
    assert read_card(file) is None
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(CARD_FILE, make_card("xor").to_json())
    assert read_card(file) == make_card("xor")
