"""Write the tables of docs/results.md and README.md: `python -m tests.tools.results_table`."""

from __future__ import annotations

import re
from pathlib import Path

from mega_hf.evaluation.statistics import wilson_interval
from mega_hf.report.result import MergeResult

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results.md"
README = ROOT / "README.md"
SETTINGS = ("strict", "reference", "default")
PAIR = "80.1 → 82.2 (ResNet-56)"
# experiment -> the paper's claim in per cent, and the published run of each setting
ROWS: dict[str, tuple[str, dict[str, str]]] = {
    **{
        f"two seeds, search seed {seed}": (
            PAIR,
            {s: f"cifar10-resnet20-pair-{s}-{seed}" for s in SETTINGS},
        )
        for seed in (46, 47, 48)
    },
    "two seeds, recalibrated and aligned": (PAIR, {"default": "cifar10-resnet20-pair-aligned-46"}),
    "two seeds, 381 evaluations of 5,000 images": (PAIR, {"strict": "cifar10-resnet20-paper"}),
    "tree of four seeds": ("", {"strict": "cifar10-resnet20-tree4"}),
    "tree of eight seeds": (
        "82.2 (ResNet-56)",
        {s: f"cifar10-resnet20-tree8-{s}" for s in SETTINGS},
    ),
    "three snapshots of one training": ("", {"default": "snapshots-cifar10-resnet20"}),
    "three fine-tunes of one ResNet-20": (
        "",
        {s: f"finetunes-cifar10-resnet20-{s}" for s in ("strict", "reference")}
        | {"default": "finetunes-cifar10-resnet20"},
    ),
    "three fine-tunes, recalibrated": (
        "",
        {"default": "finetunes-cifar10-resnet20-recalibrated-46"},
    ),
}
HEAD = ["experiment", "the paper claims", "best parent", "uniform soup", *SETTINGS]


def results() -> dict[str, MergeResult]:
    """Return the published results by folder name."""
    folders = sorted(path.parent for path in (ROOT / "model_cards").glob("*/result.json"))
    return {folder.name: MergeResult.load(folder) for folder in folders}


def render() -> str:
    """Return the table of the published runs; experiments that were not run are left out."""
    published = results()
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for experiment, (claim, runs) in ROWS.items():
        available = {
            setting: published[name] for setting, name in runs.items() if name in published
        }
        if available:
            first = next(iter(available.values()))
            parents = {_best_parent(r) for r in available.values()}
            soup = {_test(r, "uniform_soup") for r in available.values()}
            assert len(parents) == len(soup) == 1, (
                f"{experiment}: the settings have different parents"
            )
            cells = [
                _cell(available[s], f"../model_cards/{runs[s]}") if s in available else "not run"
                for s in SETTINGS
            ]
            row = [
                experiment,
                claim or "–",
                _best_parent(first),
                _test(first, "uniform_soup"),
                *cells,
            ]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _test(result: MergeResult, name: str) -> str:
    return f"{100 * result.record.row(name).test.accuracy:.2f}"


def _best_parent(result: MergeResult) -> str:
    return _test(result, result.report.paired.against)


def _cell(result: MergeResult, link: str) -> str:
    counted, p = result.report.merged.test, result.report.paired.p
    low, high = wilson_interval(counted.correct, counted.n)
    accuracy = f"{100 * counted.accuracy:.2f}"
    return (
        f"[{accuracy}]({link}) ({100 * low:.2f} to {100 * high:.2f}), p"
        f" {'< 0.0001' if p < 1e-4 else f'= {p:.4f}'}"
    )


def quickstart() -> str:
    """Return the report that the published quickstart printed."""
    return str(MergeResult.load(ROOT / "model_cards" / "quickstart").report)


def write() -> None:
    """Replace the results table and the README's report of the quickstart."""
    _replace(PAGE, r"^\| experiment \|[^\n]*\n(\|[^\n]*\n)+", render() + "\n")
    _replace(README, r"^```\nmodel  .*?^```\n", f"```\n{quickstart()}\n```\n")


def _replace(page: Path, pattern: str, new: str) -> None:
    text, count = re.subn(
        pattern, lambda _: new, page.read_text(encoding="utf-8"), count=1, flags=re.M | re.S
    )
    assert count == 1, f"{page.name} has nothing like {pattern}"
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
