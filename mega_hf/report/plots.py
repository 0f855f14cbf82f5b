"""The search as a picture."""

from __future__ import annotations

import io
from typing import Any

from mega_hf.evaluation.statistics import wilson_interval
from mega_hf.report.record import ModelRow, NodeResult, RunRecord
from mega_hf.report.result import tree_rows

_LABELLED = 63  # models of a tree that can be named in its picture: 32 parents
_PARENT_COLOURS = ("#7f7f7f", "#a0703c", "#5f7f9f", "#8f6f8f")


def plot_fitness(record: RunRecord) -> bytes:
    """Draw validation accuracy by generation, as the paper's Figure 2 does: best, mean, parents,
    uniform soup.

    Of a tree the best of each merge is drawn.

    Args:
        record: a result's record.

    Returns:
        a PNG file.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    nodes = record.nodes
    if len(nodes) > 1:
        _draw_nodes(axes, nodes)
    else:
        _draw_search(axes, record)
    axes.set_xlabel("generation")
    axes.set_ylabel("validation accuracy (%)")
    axes.set_title(record.name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _png(figure)


def _draw_search(axes: Any, record: RunRecord) -> None:
    n = record.search.n
    generations = [g.generation for g in record.history]
    best = [100 * g.best / n for g in record.history]
    mean = [100 * g.mean / n for g in record.history]
    axes.plot(generations, best, color="#c1272d", lw=2, label="best", marker=".")
    shown, full = record.search.pictures_evaluated, record.search.pictures_full
    # losers were not measured to their end
    is_bound = shown is not None and full is not None and shown < full
    axes.plot(
        generations, mean, color="#1f77b4", lw=1.2, label="mean, at most" if is_bound else "mean"
    )
    parents = [m for m in record.models if m.role == "parent"]
    for i, model in enumerate(parents):
        _line(axes, model, _PARENT_COLOURS[i % len(_PARENT_COLOURS)], "--")
    for model in (m for m in record.models if m.role == "baseline"):
        _line(axes, model, "#2ca02c", ":")


def _draw_nodes(axes: Any, nodes: list[NodeResult]) -> None:
    """Draw the best of each merge of a tree, the higher its level the darker."""
    top = max(node.level for node in nodes)
    for i, node in enumerate(nodes):
        n, history = node.search.n, node.history
        blue = (0.1, 0.35 + 0.1 * (i % 4), 0.75, 0.35 + 0.5 * node.level / top)
        colour = "#c1272d" if node is nodes[-1] else blue
        generations = [g.generation for g in history]
        best = [100 * g.best / n for g in history]
        axes.plot(
            generations,
            best,
            color=colour,
            lw=1 + node.level / 2,
            marker=".",
            label=_short(node.name),
        )


def plot_tree(record: RunRecord) -> bytes:
    """Draw test accuracy by level of the tree, as the paper's Table 2 lists it, with 95 % Wilson
    intervals.

    Args:
        record: a result's record, of a run with intermediate merges.

    Returns:
        a PNG file.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    nodes = record.nodes
    root = nodes[-1].name
    models = tree_rows(record)
    levels = [
        [name for name in models if models[name].level == i] for i in range(nodes[-1].level + 1)
    ]
    figure = Figure(figsize=(7.2, max(4.2, 1.4 + 0.17 * len(levels[0]))), layout="constrained")
    axes = figure.add_subplot()
    low, high = _limits(models)
    axes.set_ylim(low, high)
    for node in nodes:
        for parent in node.parents:
            ends = [models[name] for name in (parent, node.name)]
            axes.plot(
                *zip(*((m.level, _test(m)[0]) for m in ends), strict=True),
                color="#b0b0b0",
                lw=0.8,
                zorder=1,
            )
    for names in levels:
        gap = (high - low) * 0.13 / figure.get_figheight()  # the height of a line of text
        for name, height in zip(
            names, _apart([_test(models[name])[0] for name in names], gap), strict=True
        ):
            colour = "#c1272d" if name == root else "#1f77b4" if models[name].level else "#5f5f5f"
            _mark(axes, models[name], colour)
            if len(models) <= _LABELLED:
                _label(
                    axes,
                    models[name],
                    _final(record) if name == root else _short(name),
                    height,
                    colour,
                )
    for soup in (m for m in record.models if m.role == "baseline"):
        accuracy = _test(soup)[0]
        said = f"{soup.name}: {accuracy:.1f} %"
        style: dict[str, Any] = {"color": "#2ca02c", "ls": ":", "lw": 1.2}
        if low <= accuracy <= high:
            axes.axhline(accuracy, label=said, **style)
        else:  # a line far away would press all models together
            axes.plot(
                [],
                [],
                label=f"{said}, {'below' if accuracy < low else 'above'} what is shown",
                **style,
            )
    axes.set_xlabel("level (0: parents)")
    axes.set_ylabel("test accuracy (%), 95 % intervals")
    axes.set_title(record.name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.6, nodes[-1].level + 0.6)  # room for the names
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small", loc="upper right", bbox_to_anchor=(1.0, -0.12))
    return _png(figure)


def _final(record: RunRecord) -> str:
    return "the search's best" if record.second_look else "merged"


def _limits(models: dict[str, ModelRow]) -> tuple[float, float]:
    """Return the range of accuracies to show: of all models, with their intervals and some room."""
    tests = [_test(model) for model in models.values()]
    low, high = min(low for _, low, _ in tests), max(high for _, _, high in tests)
    room = 0.08 * max(high - low, 1.0)
    return low - room, high + room


def _apart(heights: list[float], gap: float) -> list[float]:
    """Move heights as little as can be so that each two are a gap apart: in squares, isotonic
    regression does."""
    from scipy.optimize import isotonic_regression

    order = sorted(range(len(heights)), key=lambda i: heights[i])
    moved = isotonic_regression([heights[i] - gap * place for place, i in enumerate(order)]).x
    placed = {i: float(moved[place]) + gap * place for place, i in enumerate(order)}
    return [placed[i] for i in range(len(heights))]


def _mark(axes: Any, model: ModelRow, colour: str) -> None:
    accuracy, low, high = _test(model)
    spread = [[accuracy - low], [high - accuracy]]
    axes.errorbar(model.level, accuracy, spread, color=colour, marker="o", ms=4, zorder=3)


def _label(axes: Any, model: ModelRow, text: str, height: float, colour: str) -> None:
    """Write a model's name beside its level, left of the parents and right of all others, and lead
    to its mark."""
    is_parent = model.level == 0
    near, far = (-0.04, -0.16) if is_parent else (0.04, 0.12)
    x, y = model.level or 0, _test(model)[0]
    axes.plot([x + near, x + far], [y, height], color=colour, lw=0.5, alpha=0.6)
    axes.text(
        x + far,
        height,
        text,
        fontsize=7,
        color=colour,
        va="center",
        ha="right" if is_parent else "left",
        zorder=4,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
    )


def _test(model: ModelRow) -> tuple[float, float, float]:
    """Return test accuracy and its interval in per cent."""
    counted = model.test
    low, high = wilson_interval(counted.correct, counted.n)
    return 100 * counted.accuracy, 100 * low, 100 * high


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:11]}...{name[-10:]}"


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()


def _line(axes: Any, model: ModelRow, colour: str, style: str) -> None:
    accuracy = 100 * model.validation.accuracy
    axes.axhline(accuracy, color=colour, ls=style, lw=1.2, label=model.name)
