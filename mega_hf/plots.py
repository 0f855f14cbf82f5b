"""The search as a picture."""

from __future__ import annotations

import io
from typing import Any

from mega_hf.statistics import wilson_interval

_LABELLED = 31  # models of a tree that can be named in its picture: sixteen parents
_PARENT_COLOURS = ("#7f7f7f", "#a0703c", "#5f7f9f", "#8f6f8f")


def plot_fitness(record: dict[str, Any]) -> bytes:
    """Draw validation accuracy by generation, as the paper's Figure 2 does: best, mean, parents, uniform soup.

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
    nodes = record.get("nodes", [])
    if len(nodes) > 1:
        _draw_nodes(axes, nodes)
    else:
        _draw_search(axes, record)
    axes.set_xlabel("generation")
    axes.set_ylabel("validation accuracy (%)")
    axes.set_title(record["name"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _png(figure)


def _draw_search(axes: Any, record: dict[str, Any]) -> None:
    n = record["search"]["n"]
    generations = [g["generation"] for g in record["history"]]
    best, mean = ([100 * g[key] / n for g in record["history"]] for key in ("best", "mean"))
    axes.plot(generations, best, color="#c1272d", lw=2, label="best", marker=".")
    axes.plot(generations, mean, color="#1f77b4", lw=1.2, label="mean")
    parents = [m for m in record["models"] if m["role"] == "parent"]
    for i, model in enumerate(parents):
        _line(axes, model, _PARENT_COLOURS[i % len(_PARENT_COLOURS)], "--")
    for model in (m for m in record["models"] if m["role"] == "baseline"):
        _line(axes, model, "#2ca02c", ":")


def _draw_nodes(axes: Any, nodes: list[dict[str, Any]]) -> None:
    """Draw the best of each merge of a tree, the higher its level the darker."""
    top = max(node["level"] for node in nodes)
    for i, node in enumerate(nodes):
        n, history = node["search"]["n"], node["history"]
        blue = (0.1, 0.35 + 0.1 * (i % 4), 0.75, 0.35 + 0.5 * node["level"] / top)
        colour = "#c1272d" if node is nodes[-1] else blue
        generations = [g["generation"] for g in history]
        best = [100 * g["best"] / n for g in history]
        axes.plot(generations, best, color=colour, lw=1 + node["level"] / 2, marker=".", label=_short(node["name"]))


def plot_tree(record: dict[str, Any]) -> bytes:
    """Draw test accuracy by level of the tree, as the paper's Table 2 lists it, with 95 % Wilson intervals.

    Args:
        record: a result's record, of a run with intermediate merges.

    Returns:
        a PNG file.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    nodes = record["nodes"]
    root = nodes[-1]["name"]
    models = {m["name"] if m["role"] != "merged" else root: m for m in record["models"] if "level" in m}
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    places = _places(models)
    for node in nodes:
        for parent in node["parents"]:
            ends = [(places[name], _test(models[name])[0]) for name in (parent, node["name"])]
            axes.plot(*zip(*ends, strict=True), color="#9a9a9a", lw=0.8, zorder=1)
    for name, model in models.items():
        accuracy, low, high = _test(model)
        colour = "#c1272d" if name == root else "#1f77b4" if model["level"] else "#7f7f7f"
        axes.errorbar(places[name], accuracy, [[accuracy - low], [high - accuracy]], color=colour, marker="o", ms=4)
        if len(models) <= _LABELLED:
            aside = {"rotation": 30, "ha": "right", "va": "top"} if model["level"] == 0 else {"va": "bottom"}
            axes.annotate(
                "merged" if name == root else _short(name), (places[name], accuracy),
                (-2, -1) if model["level"] == 0 else (4, 2), textcoords="offset points", fontsize=7, color=colour,
                **aside,
            )  # fmt: skip
    for soup in (m for m in record["models"] if m["role"] == "baseline"):
        axes.axhline(_test(soup)[0], color="#2ca02c", ls=":", lw=1.2, label=soup["name"])
    axes.set_xlabel("level (0: parents)")
    axes.set_ylabel("test accuracy (%), 95 % intervals")
    axes.set_title(record["name"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.5, nodes[-1]["level"] + 0.5)  # room for the names
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small", loc="upper right", bbox_to_anchor=(1.0, -0.12))
    return _png(figure)


def _places(models: dict[str, Any]) -> dict[str, float]:
    """Return where each model stands along the levels, those of one level side by side."""
    places = {}
    for level in {model["level"] for model in models.values()}:
        names = [name for name, model in models.items() if model["level"] == level]
        for i, name in enumerate(names):
            places[name] = level + 0.08 * (i - (len(names) - 1) / 2)
    return places


def _test(model: dict[str, Any]) -> tuple[float, float, float]:
    """Return test accuracy and its interval in per cent."""
    counted = model["test"]
    low, high = wilson_interval(counted["correct"], counted["n"])
    return 100 * counted["correct"] / counted["n"], 100 * low, 100 * high


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:11]}...{name[-10:]}"


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()


def _line(axes: Any, model: dict[str, Any], colour: str, style: str) -> None:
    accuracy = 100 * model["validation"]["correct"] / model["validation"]["n"]
    axes.axhline(accuracy, color=colour, ls=style, lw=1.2, label=model["name"])
