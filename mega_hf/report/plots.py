"""Figures of a run: the search by generation, and the accuracies of a tree of merges."""

from __future__ import annotations

import io
from typing import Any

from mega_hf.evaluation.statistics import wilson_interval
from mega_hf.report.record import ModelRow, NodeResult, RunRecord
from mega_hf.report.result import tree_rows

_RED, _BLUE, _GREEN, _GREY = "#c1272d", "#1f77b4", "#2ca02c", "#5f5f5f"
_PARENT_COLORS = ("#7f7f7f", "#a0703c", "#5f7f9f", "#8f6f8f")
_BASELINE_COLORS = (_GREEN, "#bcbd22", "#17becf", "#9467bd", "#e377c2")


def plot_fitness(record: RunRecord) -> bytes:
    """Plot validation accuracy by generation, as Figure 2 of the paper.

    A single search is shown with its parents and baselines; of a tree of merges, the best
    individual of each search is shown.

    Returns:
        a PNG file.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    if len(record.nodes) > 1:
        _plot_nodes(axes, record.nodes)
    else:
        _plot_search(axes, record)
    axes.set_xlabel("generation")
    axes.set_ylabel("validation accuracy (%)")
    axes.set_title(record.name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _png(figure)


def _plot_search(axes: Any, record: RunRecord) -> None:
    search, n = record.search, record.search.n
    generations = [generation.generation for generation in record.history]
    best = [100 * generation.best / n for generation in record.history]
    mean = [100 * generation.mean / n for generation in record.history]
    axes.plot(generations, best, color=_RED, lw=2, label="best", marker=".")
    # Where evaluation stopped early, the counts of the losers are upper bounds.
    is_bound = search.pictures_evaluated < search.pictures_full
    label = "mean (upper bound)" if is_bound else "mean"
    axes.plot(generations, mean, color=_BLUE, lw=1.2, label=label)
    compared = "treated_parent" if record.is_recalibrated else "parent"
    parents = [model for model in record.models if model.role == compared]
    baselines = [model for model in record.models if model.role == "baseline"]
    # A baseline far below would press everything else together.
    shown_accuracies = [*best, *mean, *(100 * parent.validation.accuracy for parent in parents)]
    low, high = min(shown_accuracies), max(shown_accuracies)
    room = 0.08 * max(high - low, 1.0)
    low, high = low - room, high + room
    for models, colors, style in (
        (parents, _PARENT_COLORS, "--"),
        (baselines, _BASELINE_COLORS, ":"),
    ):
        for i, model in enumerate(models):
            _plot_line(axes, model, {"color": colors[i % len(colors)], "ls": style}, (low, high))
    axes.set_ylim(low, high)


def _plot_line(
    axes: Any, model: ModelRow, style: dict[str, Any], limits: tuple[float, float]
) -> None:
    """Draw a model as a horizontal line; outside of the limits, only in the legend."""
    accuracy = 100 * model.validation.accuracy
    label = _short(model.name)
    if limits[0] <= accuracy <= limits[1]:
        axes.axhline(accuracy, lw=1.2, label=label, **style)
    else:
        axes.plot([], [], lw=1.2, label=f"{label}: {accuracy:.1f} %", **style)


def _plot_nodes(axes: Any, nodes: list[NodeResult]) -> None:
    """Plot the best individual of each search of a tree, the darker the higher its level."""
    top = max(node.level for node in nodes)
    for i, node in enumerate(nodes):
        blue = (0.1, 0.35 + 0.1 * (i % 4), 0.75, 0.35 + 0.5 * node.level / top)
        axes.plot(
            [generation.generation for generation in node.history],
            [100 * generation.best / node.search.n for generation in node.history],
            color=_RED if node is nodes[-1] else blue,
            lw=1 + node.level / 2,
            marker=".",
            label=_short(node.name),
        )


def plot_tree(record: RunRecord) -> bytes:
    """Plot the test accuracy of each model of a tree, by level, as Table 2 of the paper.

    Intervals are Wilson's, 95 %.

    Args:
        record: of a run with intermediate merges.

    Returns:
        a PNG file.
    """
    from matplotlib.figure import Figure

    tree = tree_rows(record)
    baselines = [model for model in record.models if model.role == "baseline"]
    rows = [*sorted(tree.values(), key=lambda model: model.level or 0), *baselines]
    figure = Figure(figsize=(7.2, 1.2 + 0.24 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    labels = []
    for place, model in enumerate(rows):
        name = record.final.name if model.role == "merged" else model.name
        is_tree = model.role != "baseline"
        kind = f"level {model.level}" if model.level else model.role
        labels.append(f"{_short(name)}  {kind}")
        color = _GREEN if not is_tree else _GREY if not model.level else _BLUE
        color = _RED if name == record.final.name and is_tree else color
        low, high = wilson_interval(model.test.correct, model.test.n)
        accuracy = model.test.accuracy
        spread = [[100 * (accuracy - low)], [100 * (high - accuracy)]]
        axes.errorbar(100 * accuracy, place, xerr=spread, color=color, marker="o", ms=4)
    axes.set_yticks(range(len(rows)), labels, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy (%), 95 % intervals")
    axes.set_title(record.name)
    axes.grid(alpha=0.25)
    return _png(figure)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:11]}...{name[-10:]}"


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()
