"""The report of a training, and the figures on it."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from markupsafe import Markup
from torch import nn

from tests.blobs import BLOBS, blobs
from training import figures, plots, report, summary
from training.calibration import expected_calibration_error
from training.corruptions import DATA_SET_SEVERITY, KINDS
from training.data import Data, Split
from training.export import ServedModel
from training.history import SURFACE_POINTS, Epoch, History, Surface
from training.mnist import RECIPE as MNIST
from training.page import Picture, Section, Table, png, render
from training.xor import RECIPE as XOR

EVALUATION = {
    "validation": {"accuracy": 0.96, "log_loss": 0.125},
    "test": {"accuracy": 0.97, "log_loss": 0.25},
    "calibration": {"temperature": 1.25},
}


def epoch(number: int, **changes: Any) -> Epoch:
    values: dict[str, Any] = {
        "learning_rate": 0.1 / number,
        "train_loss": 1.0 / number,
        "train_accuracy": 1 - 0.5 / number,
        "validation_loss": 2.0 / number,
        "validation_accuracy": 1 - 0.4 / number,
        "gradient_norms": {"Linear 1": 1e-4 / number, "Linear 2": 1.0},
        "dead_units": {"ReLU 1": 0.25},
        "seconds": 0.5,
    }
    return Epoch(number=number, **(values | changes))


def history(count: int = 3, **changes: Any) -> History:
    values: dict[str, Any] = {
        "model": "xor",
        "architecture": "line",
        "settings": {"hidden": (8, 4), "learning_rate": 0.1},
        "seed": 7,
        "epochs": tuple(epoch(number) for number in range(1, count + 1)),
    }
    return History(**(values | changes))


class Page(HTMLParser):
    """What a page has: headings, images, tables, and what it refers to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.charts: list[str | None] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self._is_heading = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self._is_heading = tag == "h2"
        if tag == "img":
            self.images.append(found)
        if tag == "svg":
            assert found["role"] == "img"
            self.charts.append(found["aria-label"])
        self.references += [v or "" for k, v in attrs if k in {"href", "src", "xlink:href"}]

    def handle_data(self, data: str) -> None:
        if self._is_heading:
            self.headings.append(data)
        self._is_heading = False


class TestFigures:
    def test_rows_of_the_confusion_matrix_are_labels(self) -> None:
        labels, answers = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([0, 1, 1, 1, 0])
        assert figures.confusion(labels, answers, 4).tolist() == [
            [1, 2, 0, 0],
            [0, 1, 0, 0],
            [1, 0, 0, 0],
            [0, 0, 0, 0],
        ]

    def test_reliability_of_known_bins(self) -> None:
        probabilities = torch.tensor(
            [[0.6, 0.4], [0.7, 0.3], [0.25, 0.75], [1.0, 0.0]], dtype=torch.float64
        )
        bins = figures.reliability(probabilities, torch.tensor([0, 1, 0, 0]), bins=4)
        # Confidence 0.75 belongs to the bin that ends there; the two lowest are empty.
        assert [(b.lower, b.upper, b.instances) for b in bins] == [(0.5, 0.75, 3), (0.75, 1.0, 1)]
        assert [b.confidence for b in bins] == pytest.approx([2.05 / 3, 1.0])
        assert [b.accuracy for b in bins] == pytest.approx([1 / 3, 1.0])

    def test_reliability_adds_up_to_the_calibration_error(self) -> None:
        generator = torch.Generator().manual_seed(0)
        probabilities = (2 * torch.randn(500, 10, generator=generator)).softmax(dim=1)
        labels = torch.randint(10, (500,), generator=generator)
        bins = figures.reliability(probabilities, labels)
        assert sum(b.instances for b in bins) == 500
        error = sum(b.instances / 500 * abs(b.accuracy - b.confidence) for b in bins)
        assert error == pytest.approx(expected_calibration_error(probabilities, labels))

    def test_the_worst_mistake_is_that_with_the_least_probability_of_the_label(self) -> None:
        probabilities = torch.tensor(
            [
                [0.5, 0.3, 0.2],  # right
                [0.6, 0.1, 0.3],
                [0.8, 0.15, 0.05],
                [0.0, 0.1, 0.9],  # right
                [0.4, 0.2, 0.4],
            ]
        )
        found = figures.worst_mistakes(probabilities, torch.tensor([0, 2, 2, 2, 1]), 2)
        assert [(m.index, m.label, m.answer) for m in found] == [(2, 2, 0), (4, 1, 0)]
        assert found[0].confidence == pytest.approx(0.8)
        assert found[0].of_label == pytest.approx(0.05)
        right = figures.worst_mistakes(probabilities[:1], torch.tensor([0]), 2)
        assert right == ()

    def test_disagreements_by_both_answers(self) -> None:
        first, second = torch.tensor([1, 1, 2, 1, 0]), torch.tensor([1, 2, 0, 2, 0])
        found = figures.disagreements(first, second)
        assert list(found.items()) == [((1, 2), [1, 3]), ((2, 0), [2])]

    def test_accuracy_by_corruption_of_a_model_that_sees_brightness(self) -> None:
        class IsBright(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                is_bright = (x.float().mean(dim=(1, 2)) > 100).float()
                return torch.stack([1 - is_bright, is_bright], dim=1)

        dark = torch.zeros(20, 28, 28, dtype=torch.uint8)
        dark[:, 10:18, 10:18] = 255
        split = Split(dark, torch.zeros(20, dtype=torch.int64))
        found = figures.accuracy_by_corruption(IsBright(), split)
        assert tuple(found) == KINDS
        assert {kind for kind, values in found.items() if len(values) == 1} == {
            *("stripe", "dotted_line", "zigzag", "canny_edges")
        }
        assert found["translate"] == (1.0,) * 5
        # By 0.1 to 0.5 of 255, from a mean of 21.
        assert found["brightness"] == (1.0, 1.0, 1.0, 0.0, 0.0)
        assert found["stripe"] == (0.0,)


class TestTables:
    def test_mistakes_are_shaded_and_the_diagonal_is_not(self) -> None:
        table = report.confusion_table([[90, 10, 0], [0, 1000, 1], [0, 0, 0]], "abc")
        assert [list(row) for row in table.rows] == [
            ["a", "90", "10", ""],
            ["b", "", "1,000", "1"],
            ["c", "", "", ""],
        ]
        assert table.shades[0] == [0, 1.0, 0]
        assert table.shades[1] == pytest.approx([0, 0, 20 / 1001])

    def test_corruptions_have_the_strength_of_the_data_set_first(self) -> None:
        table = report.corruption_table(
            {"shear": (0.99, 0.9, 0.8, 0.7, 0.6), "canny_edges": (0.5,)}
        )
        assert DATA_SET_SEVERITY["shear"] == 2
        assert table.head == ("", "MNIST-C", "1", "2", "3", "4", "5")
        assert [list(row) for row in table.rows] == [
            ["shear", "90.0", "99.0", "90.0", "80.0", "70.0", "60.0"],
            ["canny edges", "50.0", "", "", "", "", ""],
            ["mean", "70.0", "99.0", "90.0", "80.0", "70.0", "60.0"],
        ]
        assert table.shades[1] == [1.0, 0, 0, 0, 0, 0]


class TestCharts:
    def test_a_chart_is_an_image_with_a_description(self) -> None:
        chart = plots.lines('Loss "by" <epoch>', [1, 2], {"loss": [1.0, 0.5]}, ylabel="loss <&>")
        assert chart is not None
        assert chart.startswith('<svg role="img" aria-label="Loss &#34;by&#34; &lt;epoch&gt;" ')
        assert "loss &lt;&amp;&gt;" in chart
        assert "currentColor" in chart
        assert "<metadata" not in chart

    def test_the_same_numbers_are_the_same_chart(self) -> None:
        one, other = (report.gradient_chart(history().epochs) for _ in range(2))
        assert one == other

    def test_charts_of_a_page_share_no_ids(self) -> None:
        charts = [report.gradient_chart(history().epochs, title=title) for title in "ab"]
        one, other = (set(re.findall(r'\bid="([^"]+)"', chart or "")) for chart in charts)
        assert one
        assert not one & other

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_no_chart_of_what_has_no_number(self, value: float) -> None:
        assert plots.lines("loss", [1, 2], {"loss": [value, value]}, ylabel="loss") is None
        assert plots.lines("loss", [], {}, ylabel="loss") is None

    def test_numbers_that_are_missing_or_0_are_left_out(self) -> None:
        norms = [{"Linear 1": math.nan}, {"Linear 1": 0.0, "Linear 2": 1.0}, {"Linear 2": 1e-9}]
        epochs = [epoch(n, gradient_norms=norm) for n, norm in enumerate(norms, start=1)]
        assert report.gradient_chart(epochs)
        assert report.gradient_chart(epochs, limits=(1e-9, 1.0))
        dead = [epoch(1, gradient_norms={"Linear 1": 0.0, "Linear 2": 0.0})]
        assert report.gradient_chart(dead)

    def test_layers_that_an_epoch_lacks(self) -> None:
        found = report.by_layer([{"a": 1.0}, {"a": 2.0, "b": 3.0}])
        assert found["a"] == [1.0, 2.0]
        assert math.isnan(found["b"][0])
        assert found["b"][1] == 3.0


class TestPage:
    def test_text_is_escaped_and_charts_are_not(self) -> None:
        page = render(
            "<title>",
            [("<name>", "<value>")],
            [
                Section(
                    heading="<heading>",
                    note="</p><script>",
                    facts=[("<fact>", "<is>")],
                    charts=[Markup("<svg></svg>")],
                    tables=[Table(head=("<head>",), rows=[("<row>", "<cell>")], caption="<of>")],
                    pictures=[Picture(source='"><s>', alt='"<alt>', caption="<caption>")],
                )
            ],
        )
        texts = [
            "title",
            "name",
            "value",
            "heading",
            "script",
            "fact",
            "is",
            "head",
            "row",
            "cell",
            "of",
            "s",
            "caption",
            "alt",
        ]
        assert [text for text in texts if f"&lt;{text}&gt;" not in page] == []
        assert "<svg></svg>" in page
        assert "<script" not in page

    def test_a_section_without_content_is_left_out(self) -> None:
        page = render("title", [], [Section(heading="Nothing", note="much")])
        assert "Nothing" not in page
        assert "much" not in page

    def test_pictures_are_within_the_page(self) -> None:
        pixels = torch.arange(784, dtype=torch.int64).reshape(28, 28).to(torch.uint8)
        assert png(pixels).startswith("data:image/png;base64,iVBOR")


def digits(model_data: Data) -> Data:
    validation = Split(model_data.validation.x[:120], model_data.validation.y[:120])
    return replace(model_data, validation=validation)


def untrained(temperature: float) -> ServedModel:
    torch.manual_seed(0)
    model = ServedModel(MNIST.normalise, nn.Sequential(nn.Flatten(), nn.Linear(784, 10))).eval()
    model.temperature = temperature
    return model


class TestReport:
    @pytest.fixture(autouse=True)
    def few_corrupted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(report, "_CORRUPTED", 10)

    def test_of_digits(self, tmp_path: Path, mnist_data: Data) -> None:
        data = digits(mnist_data)
        file = report.write(tmp_path, history(), untrained(2.0), data, MNIST, EVALUATION)
        assert file == tmp_path / "report.html"
        html = file.read_text()
        page = Page(html)
        assert page.headings == [
            "Settings",
            "Learning",
            "Gradients and dead units, by layer",
            "Confusion matrix",
            "Accuracy by corruption",
            "Worst mistakes",
            "Reliability",
        ]
        assert len(page.charts) == 7
        assert len(page.images) == 24
        assert all(image["alt"] for image in page.images)
        assert not page.tags & {"script", "iframe", "object"}
        assert [r for r in page.references if not r.startswith(("data:", "#"))] == []
        assert "url(http" not in html
        assert "96.00%" in html
        assert "8, 4" in html  # the hidden layers
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert metrics["evaluation"] == EVALUATION
        assert History.from_json(json.dumps(metrics["history"])).epochs == history().epochs
        assert sum(map(sum, metrics["confusion"])) == 120
        before, after = (metrics["reliability"][side] for side in ("before", "after"))
        # Halved logits are less sure.
        assert before["bins"][-1]["confidence"] > after["bins"][-1]["confidence"]
        worst = metrics["worst_mistakes"]
        assert [m["of_label"] for m in worst] == sorted(m["of_label"] for m in worst)
        assert f"no. {worst[0]['index']}" in html
        assert tuple(metrics["corruptions"]) == KINDS

    def test_without_a_temperature_there_is_one_reliability_diagram(
        self, tmp_path: Path, mnist_data: Data
    ) -> None:
        data = digits(mnist_data)
        html = report.write(tmp_path, history(), untrained(1.0), data, MNIST, {}).read_text()
        assert html.count("Accuracy by confidence without a temperature") == 1
        assert "before calibration" not in html
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert list(metrics["reliability"]) == ["after"]

    def test_of_xor(self, tmp_path: Path) -> None:
        rows = [[j / (SURFACE_POINTS - 1)] * SURFACE_POINTS for j in range(SURFACE_POINTS)]
        surfaces = tuple(Surface(epoch=n, probabilities=tuple(map(tuple, rows))) for n in (0, 1, 2))
        model = ServedModel(XOR.normalise, nn.Linear(2, 2)).eval()
        data = XOR.data(Path())
        written = report.write(tmp_path, history(surfaces=surfaces), model, data, XOR, EVALUATION)
        page = Page(written.read_text())
        assert page.headings == [
            "Settings",
            "Learning",
            "Gradients and dead units, by layer",
            "Decision surface over time",
            "Confusion matrix",
        ]
        assert [image["alt"] for image in page.images] == [
            f"What the model answers over the plane {when}"
            for when in ("before training", "after epoch 1", "after epoch 2")
        ]
        assert written.read_text().count('class="mark filled"') == 3 * 2
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert not {"reliability", "corruptions"} & set(metrics)

    def test_of_a_training_that_diverged(self, tmp_path: Path) -> None:
        nothing = dict.fromkeys(("train_loss", "validation_loss"), math.nan)
        lost = history(epochs=(epoch(1, gradient_norms={}, dead_units={}, **nothing),))
        model = ServedModel(nn.Identity(), nn.Linear(2, 2)).eval()
        html = report.write(tmp_path, lost, model, blobs(Path()), BLOBS, {}).read_text()
        assert [chart for chart in Page(html).charts if chart and "Loss" in chart] == []
        assert "Gradients" not in html
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert metrics["history"]["epochs"][0]["train_loss"] is None


class TestSummary:
    def test_of_a_history_fits_a_terminal(self) -> None:
        lines = summary.of_history(history(10_000)).splitlines()
        assert len(lines) == 9
        assert max(map(len, lines)) <= 80
        assert lines[1].split()[0] == "1"
        assert lines[-1].split()[0] == "10,000"
        few = summary.of_history(history(3)).splitlines()
        assert [line.split()[0] for line in few] == ["epoch", "1", "2", "3"]
        assert few[2].split() == ["2", "0.05", "0.5000", "75.00%", "1.0000", "80.00%", "0.5"]
