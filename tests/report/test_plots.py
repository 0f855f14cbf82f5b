"""Figures: the same bytes each time, and an axis that the search fills."""

from __future__ import annotations

from pathlib import Path

import pytest

from mega_hf.report import plots
from mega_hf.report.result import MergeResult

CARDS = Path(__file__).parents[2] / "model_cards"


@pytest.mark.parametrize("plot", [plots.plot_fitness, plots.plot_tree])
def test_a_figure_has_the_same_bytes_each_time(plot) -> None:
    record = MergeResult.load(CARDS / "cifar10-resnet20-tree4").record
    assert plot(record) == plot(record)


def test_a_baseline_far_below_is_only_in_the_legend() -> None:
    from matplotlib.figure import Figure

    record = MergeResult.load(CARDS / "cifar10-resnet20-pair-default-46").record
    axes = Figure().add_subplot()
    plots._plot_search(axes, record)
    soup = record.row("uniform_soup").validation.accuracy
    assert 100 * soup < axes.get_ylim()[0] < 100 * record.search.accuracy < axes.get_ylim()[1]
    assert f"uniform_soup: {100 * soup:.1f} %" in axes.get_legend_handles_labels()[1]
