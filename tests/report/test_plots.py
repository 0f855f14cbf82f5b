"""The pictures: names that don't cover each other, and a range that shows the models."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mega_hf.report import plots
from mega_hf.report.result import MergeResult

CARDS = Path(__file__).parents[2] / "model_cards"


@given(st.lists(st.floats(0, 100), min_size=1, max_size=40), st.floats(0.01, 5))
def test_names_are_a_line_apart_in_the_order_of_their_marks(
    heights: list[float], gap: float
) -> None:
    placed = plots._apart(heights, gap)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    for lower, upper in itertools.pairwise(order):
        assert placed[upper] - placed[lower] >= gap - 1e-6
    assert sum(placed) == pytest.approx(sum(heights), abs=1e-6), "none is favoured"


def test_what_is_apart_already_stays_where_it_is() -> None:
    assert plots._apart([3.0, 1.0, 2.0], 0.5) == pytest.approx([3.0, 1.0, 2.0])
    assert plots._apart([5.0, 5.0], 1.0) == pytest.approx([4.5, 5.5])


def test_the_range_is_that_of_the_models_whatever_a_baseline_has() -> None:
    record = MergeResult.load(CARDS / "cifar10-resnet20-tree4").record
    models = {m.name: m for m in record.models if m.level is not None}
    shown = [100 * m.test.accuracy for m in models.values()]
    low, high = plots._limits(models)
    assert 10.02 < min(shown) - 6 < low < min(shown) and max(shown) < high < max(shown) + 6, (
        "the soup has 10.02"
    )
    assert plots.plot_tree(record) == plots.plot_tree(record), "the same bytes each time"
