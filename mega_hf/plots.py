"""The search as a picture."""

from __future__ import annotations

import io
from typing import Any

_PARENT_COLOURS = ("#7f7f7f", "#a0703c", "#5f7f9f", "#8f6f8f")


def plot_fitness(record: dict[str, Any]) -> bytes:
    """Draw validation accuracy by generation, as the paper's Figure 2 does: best, mean, parents, uniform soup.

    Args:
        record: a result's record.

    Returns:
        a PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    n = record["search"]["n"]
    generations = [g["generation"] for g in record["history"]]
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(
        generations, [100 * g["best"] / n for g in record["history"]], color="#c1272d", lw=2, label="best", marker="."
    )
    axes.plot(generations, [100 * g["mean"] / n for g in record["history"]], color="#1f77b4", lw=1.2, label="mean")
    parents = [m for m in record["models"] if m["role"] == "parent"]
    for i, model in enumerate(parents):
        _line(axes, model, _PARENT_COLOURS[i % len(_PARENT_COLOURS)], "--")
    for model in (m for m in record["models"] if m["role"] == "baseline"):
        _line(axes, model, "#2ca02c", ":")
    axes.set_xlabel("generation")
    axes.set_ylabel("validation accuracy (%)")
    axes.set_title(record["name"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()


def _line(axes: Any, model: dict[str, Any], colour: str, style: str) -> None:
    accuracy = 100 * model["validation"]["correct"] / model["validation"]["n"]
    axes.axhline(accuracy, color=colour, ls=style, lw=1.2, label=model["name"])
