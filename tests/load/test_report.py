"""Pages of reports, and the charts on them."""

from itertools import pairwise

import pytest
from matplotlib import pyplot as plt

from loadtest import charts, report


def test_text_is_escaped_and_the_chart_is_not() -> None:
    page = report.render(
        "<title>", ["</p><script>"], "<svg></svg>", [(["<th>"], [["<td>"]])], "FAILED: <b>"
    )
    for text in ("title", "/p&gt;&lt;script", "th", "td", "b"):
        assert f"&lt;{text}&gt;" in page
    assert "<svg></svg>" in page
    assert 'class="verdict failed"' in page


@pytest.mark.parametrize(
    ("low", "high"), [(0.1, 2e5), (1, 3000), (1, 21), (3, 20), (2.2, 4.8), (2.1, 2.2), (5, 5)]
)
def test_labels_of_a_logarithmic_axis_do_not_overlap(low: float, high: float) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    try:
        axes[0].plot([0, 1], [low, high])
        axes[0].set(yscale="log")
        charts.plain_numbers(axes[0].yaxis)
        figure.draw_without_rendering()
        bottom, top = axes[0].get_ylim()
        ticks = axes[0].yaxis.get_ticklabels(which="both")
        labels = [t for t in ticks if t.get_text() and bottom <= t.get_position()[1] <= top]
        assert len(labels) >= 2
        boxes = sorted((t.get_window_extent() for t in labels), key=lambda box: box.y0)
        assert all(lower.y1 <= upper.y0 for lower, upper in pairwise(boxes))
        assert all("e" not in t.get_text() and "$" not in t.get_text() for t in labels)
    finally:
        plt.close(figure)
