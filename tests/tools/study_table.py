"""Write the tables and the figure of docs/study.md: `python -m tests.tools.study_table`."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean, stdev

from mega_hf.evaluation.statistics import wilson_interval
from mega_hf.report.record import ModelRow, PairedTest
from mega_hf.report.result import MergeResult
from mega_hf.report.table import format_p

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "study.md"
FIGURE = ROOT / "docs" / "study.png"
KINDS = {
    "seeds": "two seeds",
    "finetunes": "three fine-tunes of one ResNet-20",
    "snapshots": "four snapshots of one training",
    "convnext": "three fine-tunes of one ConvNeXt",
}
COLUMNS = {  # column -> the report's row, by role or by name
    "best parent": "parent",
    "average": "soup",
    "greedy soup": "greedy_soup",
    "line sweep": "line-sweep",
    "random": "random",
    "search": "searched",
    "**merged**": "merged",
    "ensemble": "ensemble",
}
_POPULATION = 12  # of the study's recipes
_COLOURS = {
    "best parent": "#7f7f7f",
    "average": "#2ca02c",
    "greedy soup": "#98df8a",
    "line sweep": "#bcbd22",
    "random": "#17becf",
    "search": "#1f77b4",
    "merged": "#c1272d",
    "ensemble": "#d0d0d0",
}


def runs() -> list[tuple[str, str, MergeResult]]:
    """Return (kind of parents, method and seed, result) of each published run of the study."""
    found = []
    for kind in KINDS:
        for folder in sorted((ROOT / "model_cards").glob(f"study-{kind}-*")):
            found.append(
                (kind, folder.name.removeprefix(f"study-{kind}-"), MergeResult.load(folder))
            )
    return found


def models(result: MergeResult) -> dict[str, ModelRow]:
    """Return the models of a report that the table shows, by column."""
    report = result.report
    named = {model.name: model for model in report.models}
    roles = {model.role: model for model in report.models}
    soup = named.get("aligned_soup", named["uniform_soup"])
    special = {"parent": named[report.paired.against], "soup": soup, "merged": report.merged}
    special["searched"] = roles.get("searched", report.merged)
    shown = {column: special.get(key, named.get(key)) for column, key in COLUMNS.items()}
    return {column: model for column, model in shown.items() if model is not None}


def render() -> str:
    """Return the table of all runs."""
    head = [
        "parents",
        "search",
        "seed",
        *COLUMNS,
        "chosen",
        "against best parent",
        "against greedy soup",
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for kind, how, result in runs():
        shown, record = models(result), result.record
        cells = [_accuracy(shown[column]) if column in shown else "–" for column in COLUMNS]
        assert record.second_look is not None
        chosen = record.second_look.chosen
        chosen = "the search's" if chosen == record.final.name else chosen
        against = [_against(paired) for paired in result.report.comparisons]
        name = f"[{searched_by(result)}](../model_cards/study-{kind}-{how})"
        seed = str(record.final.merge["seed"])
        lines.append(f"| {' | '.join([KINDS[kind], name, seed, *cells, chosen, *against])} |")
    return "\n".join(lines)


def summarize() -> str:
    """Return the table of means and standard deviations over search seeds, by kind of parents."""
    shown = ["best parent", "average", "greedy soup", "random", "search", "**merged**"]
    head = ["parents, over seeds", *shown, "gain over the best parent", "largest p"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    found = runs()
    for kind, what in KINDS.items():
        results = [result for of, how, result in found if of == kind and how.isdigit()]
        cells = [
            _spread([_percent(models(result)[column]) for result in results]) for column in shown
        ]
        gains = [
            _percent(models(r)["**merged**"]) - _percent(models(r)["best parent"]) for r in results
        ]
        p = format_p(max(result.report.paired.p for result in results)).removeprefix("= ")
        lines.append(f"| {' | '.join([f'{what}, {len(results)}', *cells, _spread(gains), p])} |")
    return "\n".join(lines)


def searched_by(result: MergeResult) -> str:
    """Describe a search, where it differs from the defaults of the study."""
    node = result.record.final
    settings, evaluations = node.merge, node.search.evaluations
    words = [
        ("auto: " if result.record.chosen else "") + settings["method"],
        settings.get("granularity", ""),
        settings.get("fitness", ""),
    ]
    words += [f"{evaluations} evaluations"] if settings["population_size"] != _POPULATION else []
    return ", ".join(word for word in words if word)


def _percent(model: ModelRow) -> float:
    return 100 * model.test.accuracy


def _spread(values: list[float]) -> str:
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 and max(values) > min(values) else ""
    return f"{mean(values):.2f}{spread}"


def _accuracy(model: ModelRow) -> str:
    return f"{_percent(model):.2f}"


def _against(paired: PairedTest) -> str:
    return f"{100 * paired.low:+.2f} to {100 * paired.high:+.2f}, p {format_p(paired.p)}"


def draw() -> None:
    """Draw the test accuracy of each method and kind of parents, with 95 % Wilson intervals."""
    from matplotlib.figure import Figure

    figure, known = Figure(figsize=(9, 9), layout="constrained"), runs()
    for place, (kind, what) in enumerate(KINDS.items(), start=1):
        axes = figure.add_subplot(2, 2, place)
        rows = dict[str, list[ModelRow]]()
        found = list[float]()
        for _, how, result in (run for run in known if run[0] == kind):
            shown = models(result)
            if not how.isdigit():
                shown = {f"search, {searched_by(result)}": shown["search"]}
            for column, model in shown.items():
                rows.setdefault(column.strip("*"), []).append(model)
        for at, (column, several) in enumerate(rows.items()):
            colour = _COLOURS.get(column, _COLOURS["search"])
            for i, model in enumerate(several):  # seeds beside each other
                correct, n = model.test.correct, model.test.n
                low, high = (100 * bound for bound in wilson_interval(correct, n))
                centre, y = 100 * correct / n, -at - 0.18 * i
                found.append(centre)
                axes.errorbar(
                    centre,
                    y,
                    xerr=[[centre - low], [high - centre]],
                    marker="o",
                    ms=4,
                    color=colour,
                    lw=1,
                )
        left = max(found) - 4  # further left there are only models worse than any parent
        axes.set_xlim(left, max(found) + 1.2)
        for at, several in enumerate(rows.values()):
            if _percent(several[0]) < left:
                axes.annotate(f"← {_percent(several[0]):.2f}", (left, -at), fontsize=7, va="center")
        axes.set_yticks([-at for at in range(len(rows))], list(rows), fontsize=7)
        axes.set_title(what, fontsize=8, loc="left")
        axes.grid(alpha=0.25, axis="x")
    figure.supxlabel("accuracy on 10,000 test images (%)", fontsize=8)
    figure.savefig(FIGURE, dpi=110)


def write() -> None:
    """Replace the tables and the figure."""
    text = PAGE.read_text(encoding="utf-8")
    for made in (render(), summarize()):
        table = re.compile(
            rf"^{re.escape(made[: made.index('|', 1) + 1])}.*?(?=\n\n)", flags=re.M | re.S
        )
        text = table.sub(lambda _, made=made: made, text, count=1)  # type: ignore[misc]
    PAGE.write_text(text, encoding="utf-8")
    draw()


if __name__ == "__main__":
    write()
