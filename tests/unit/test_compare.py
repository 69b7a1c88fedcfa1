"""Where two models answer differently."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.untrained import make_card
from training import compare
from training.compare import Candidate, Comparison
from training.data import Data, Split
from training.registry import load_recipe


class IsLight(nn.Module):
    """Says 1 of images whose mean is over a limit, else 0."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lightness = x.float().mean(dim=(1, 2)) - self.limit
        return torch.stack([-lightness, lightness], dim=1).softmax(dim=1)


def candidate(title: str, limit: float, data_sha256: str) -> Candidate:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(IsLight(limit)), file)
    card = make_card("mnist", file.getvalue(), data_sha256=data_sha256)
    return Candidate(title, card, file.getvalue())


def compared(monkeypatch: pytest.MonkeyPatch, *limits: float) -> Comparison:
    """Of images with means of 0, 10, ..., 90, of which the darker half is labelled 0."""
    x = torch.arange(0, 100, 10, dtype=torch.uint8).reshape(10, 1, 1).expand(10, 28, 28)
    split = Split(x.contiguous(), (torch.arange(10) >= 5).long())
    data = Data(split, split, split)
    recipe = replace(load_recipe("mnist"), classes=("<dark>", "light"), data=lambda _: data)
    monkeypatch.setattr(compare, "load_recipe", lambda _: recipe)
    first, second = (candidate(f"side {at}", at, data.sha256) for at in limits)
    return compare.compare(first, second, Path("unused"))


def test_pairs_of_answers_and_their_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = compare.text(compared(monkeypatch, 45, 15)).splitlines()
    assert lines[-3].startswith("Labels differ for 3 of 10 validation instances: the first is ")
    assert lines[-3].endswith(" correct for 3 of them, the second for 0.")
    assert lines[-2:] == [
        "FIRST   SECOND  COUNT  INSTANCES",
        "<dark>  light   3      2, 3, 4",
    ]


def test_many_instances_are_told_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    text = compare.text(compared(monkeypatch, 45, -1))
    assert text.endswith("<dark>  light   5      0, 1, 2, 3, 4")
    text = compare.text(compared(monkeypatch, 95, -1))
    assert text.endswith("<dark>  light   10     0, 1, 2, 3, 4, 5, ...")


def test_no_table_where_nothing_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    same = compared(monkeypatch, 45, 46)
    assert "INSTANCES" not in compare.text(same)
    assert "<img" not in compare.page(same)


def test_the_page_shows_every_image_in_question(monkeypatch: pytest.MonkeyPatch) -> None:
    page = compare.page(compared(monkeypatch, 45, 25))
    assert page.count("<img ") == 2
    assert 'alt="Validation image 3, labelled &lt;dark&gt;"' in page
    assert "label &lt;dark&gt;\nfirst: &lt;dark&gt; (100%)\nsecond: light (100%)\nno. 4" in page
    assert "<dark>" not in page
