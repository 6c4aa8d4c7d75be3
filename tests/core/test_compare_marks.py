"""What is shown as no change is no change for the better or worse either."""

from __future__ import annotations

import pytest

from core.compare import METRICS, UNCHANGED, Figure
from pages.ui.figures import change_text, column_widths


@pytest.mark.parametrize("key, sign", [("peak_resident_bytes", -1), ("psnr_db", 1), ("sparsity", 0)])
def test_a_change_that_is_shown_as_none_has_no_mark(key, sign):
    for change in (0.9 * UNCHANGED, -0.9 * UNCHANGED, 0.0):
        figure = Figure(METRICS[key], 100.0, change, change)
        assert figure.better(figure.against_baseline) is None and change_text(figure) == "unchanged"
    more = Figure(METRICS[key], 100.0, 0.01, 0.01)
    assert more.better(0.01) is {1: True, -1: False, 0: None}[sign] and "+1.0%" in str(change_text(more))


def test_one_change_or_both():
    figure = Figure(METRICS["parameters"], 5e6, 0.25, -0.5)
    assert change_text(figure) == "-50.0% baseline · +25.0% parent"
    assert change_text(figure, "baseline") == "-50.0%" and change_text(figure, "parent") == "+25.0%"
    assert change_text(Figure(METRICS["parameters"], 5e6, None, 0.0), "parent") is None


def test_a_change_of_a_tiny_figure_is_no_percentage():
    """0.72 % to 95.28 % is a gain of 94.56 points; that it is 13,183 % more says nothing."""
    gained = Figure(METRICS["accuracy"], 0.9528, 0.9528 / 0.0072 - 1)
    assert gained.change_text(gained.against_parent) == "+94.56 points"
    assert Figure(METRICS["flip"], 0.9).change_text(0.9 / 0.006 - 1) == "x 150"
    assert Figure(METRICS["accuracy"], 0.9).change_text(0.5) == "+50.0% (+30.00 points)"


def test_columns_are_as_wide_as_their_longest_text():
    found = column_widths([{"": "PSNR", "a": "22 longer than the name", "b": "1"}, {"": "SSIM", "a": "2", "b": "x" * 90}])
    widths = {name: column["width"] for name, column in found.items()}
    assert widths["b"] > widths["a"] > 22 * 6 and widths[""] == 190 and found[""]["pinned"] is True
