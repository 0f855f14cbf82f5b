"""The study's table and figure, from the committed results: `python -m tests.study_table`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mega_hf.result import MergeResult, format_p
from mega_hf.statistics import wilson_interval

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "model_cards" / "study.md"
FIGURE = ROOT / "model_cards" / "study.png"
KINDS = {
    "seeds": "two seeds",
    "finetunes": "three fine-tunes of one trunk",
    "snapshots": "four snapshots of one training",
    "convnext": "three fine-tunes of one ConvNeXt",
}
COLUMNS = {  # column -> the report's row, by role or by name
    "best parent": "parent", "average": "soup", "greedy soup": "greedy_soup", "line sweep": "line-sweep",
    "random": "random", "search": "searched", "**merged**": "merged", "ensemble": "ensemble",
}  # fmt: skip
_COLOURS = ("#7f7f7f", "#2ca02c", "#98df8a", "#bcbd22", "#17becf", "#1f77b4", "#c1272d", "#d0d0d0")


def runs() -> list[tuple[str, str, MergeResult]]:
    """Return (kind, how and seed, result) of each committed run of the study."""
    found = []
    for kind in KINDS:
        for folder in sorted((ROOT / "model_cards").glob(f"study-{kind}-*")):
            found.append((kind, folder.name.removeprefix(f"study-{kind}-"), MergeResult.load(folder)))
    return found


def models(result: MergeResult) -> dict[str, dict[str, Any]]:
    """Return what of a report stands in the table: column -> its row of the report."""
    report = result.report
    named = {model["name"]: model for model in report.models}
    roles = {model["role"]: model for model in report.models}
    soup = named.get("aligned_soup", named["uniform_soup"])
    special = {"parent": named[report.paired["against"]], "soup": soup, "merged": report.merged}
    special["searched"] = roles.get("searched", report.merged)
    shown = {column: special.get(key, named.get(key)) for column, key in COLUMNS.items()}
    return {column: model for column, model in shown.items() if model is not None}


def render() -> str:
    """Return the table."""
    head = ["parents", "search, seed", *COLUMNS, "named", "against best parent", "against greedy soup"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for kind, how, result in runs():
        shown, record = models(result), result.record
        cells = [_accuracy(shown[column]) if column in shown else "–" for column in COLUMNS]
        method = record["nodes"][-1]["merge"]["method"]
        chosen = record["second_look"]["chosen"]
        chosen = "the search's" if chosen == record["nodes"][-1]["name"] else chosen
        against = [_against(paired) for paired in (result.report.paired, result.report.paired_soup)]
        name = f"[{method}, {how.rpartition('-')[2]}](study-{kind}-{how})"
        lines.append(f"| {' | '.join([KINDS[kind], name, *cells, chosen, *against])} |")
    return "\n".join(lines)


def _accuracy(model: dict[str, Any]) -> str:
    return f"{100 * model['test']['correct'] / model['test']['n']:.2f}"


def _against(paired: dict[str, Any] | None) -> str:
    if paired is None:
        return "–"
    return f"{100 * paired['low']:+.2f} to {100 * paired['high']:+.2f}, p {format_p(paired['p'])}"


def draw() -> None:
    """Write the figure: what each way gave on test, for each run, with 95 % Wilson intervals."""
    from matplotlib.figure import Figure

    found = runs()
    figure = Figure(figsize=(9, 1.2 + 1.25 * len(found)), layout="constrained")
    for i, (kind, how, result) in enumerate(found, start=1):
        axes = figure.add_subplot(len(found), 1, i)
        for place, (column, model) in enumerate(models(result).items()):
            correct, n = model["test"]["correct"], model["test"]["n"]
            low, high = wilson_interval(correct, n)
            colour = _COLOURS[list(COLUMNS).index(column)]
            axes.errorbar(
                100 * correct / n, -place, xerr=[[100 * (correct / n - low)], [100 * (high - correct / n)]],
                marker="o", color=colour, capsize=3, lw=1.4,
            )  # fmt: skip
            axes.annotate(
                column.strip("*"), (100 * high, -place), xytext=(6, -3), textcoords="offset points", fontsize=7
            )
        best = max(100 * model["test"]["correct"] / model["test"]["n"] for model in models(result).values())
        axes.set_xlim(best - 4, best + 2)  # what lies further below is worse than any parent
        axes.set_ylim(-len(COLUMNS), 1)
        axes.set_yticks([])
        axes.set_title(f"{KINDS[kind]}, {how}", fontsize=8, loc="left")
        axes.grid(alpha=0.25, axis="x")
    figure.supxlabel("accuracy on 10,000 test rows (%)", fontsize=8)
    figure.savefig(FIGURE, dpi=110)


def write() -> None:
    """Put table and figure in the place of those that are there."""
    text = PAGE.read_text(encoding="utf-8")
    table = re.compile(r"^\| parents \|.*?(?=\n\n)", flags=re.M | re.S)
    PAGE.write_text(table.sub(lambda _: render(), text, count=1), encoding="utf-8")
    draw()


if __name__ == "__main__":
    write()
