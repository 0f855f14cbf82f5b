"""`mega-hf merge --seeds K`: repeat a search with several seeds, and summarize the results."""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mega_hf.cli.arguments import search_options
from mega_hf.cli.launch import is_main_process, launch_processes
from mega_hf.cli.merge import print_estimate
from mega_hf.cli.output import print_answer
from mega_hf.errors import RecipeError, RunError
from mega_hf.recipe.schema import Recipe
from mega_hf.report.result import MergeResult
from mega_hf.report.table import format_p
from mega_hf.run.folder import RunFolder
from mega_hf.runtime.files import write_whole
from mega_hf.runtime.untrusted import printable

SUMMARY_FILE = "seeds.json"
_SIGNIFICANT = 0.05
_COLUMNS = ("merged", "searched", "parent")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SeedSummary:
    """The results of one search repeated with several seeds; `str` is a table.

    Attributes:
        seeds: one dict per seed. `merged`, `searched` and `parent` are test accuracies in [0, 1]:
            of the merged model, of the best individual of the search, and of the parent that is
            best on validation. `against` is that parent's name, and `p` the p-value of McNemar's
            test of the merged model against it.
        mean: the mean of `merged`, `searched` and `parent` over the seeds.
        deviation: their sample standard deviation over the seeds.
        better: number of seeds whose merged model is better than its best parent (p < 0.05).
        worse: number of seeds whose merged model is worse (p < 0.05).
    """

    seeds: list[dict[str, Any]]
    mean: dict[str, float]
    deviation: dict[str, float]
    better: int
    worse: int

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{'seed':>6}  {'merged':>7}  {'search':>7}  {'parent':>7}  against"]
        for row in self.seeds:
            against = f"{printable(row['against'])}, p {format_p(row['p'])}"
            lines.append(f"{row['seed']:6}  {_percentages(row)}  {against}")
        lines.append(f"{'mean':>6}  {_percentages(self.mean)}")
        lines.append(f"{'std':>6}  {_percentages(self.deviation)}")
        lines.append(
            f"\nTest accuracy in %. Better than the best parent (p < {_SIGNIFICANT}) with"
            f" {self.better} of {len(self.seeds)} seeds, worse with {self.worse}."
        )
        return "\n".join(lines)


def merge_seeds(
    recipe: Recipe, count: int, out: Path, *, parents: Path | None = None, **options: Any
) -> SeedSummary:
    """Merge with `count` seeds, from the recipe's own upwards, each in the folder `out/seedN`.

    Parents that are trained for the runs are trained once. Finished runs are not repeated.

    Args:
        recipe: the recipe of the first seed.
        count: number of seeds.
        out: the folder for all runs; the summary is written to its seeds.json.
        parents: the folder of the trained parents; `out/parents` by default.
        options: passed to `mega_hf.merge`.

    Raises:
        MegaError: as `mega_hf.merge`; the runs that are finished are kept.
    """
    from mega_hf.run.pipeline import merge

    if recipe.trained and parents is None:
        parents = out / "parents"
    results: list[MergeResult] = []
    for seed in range(recipe.merge.seed, recipe.merge.seed + count):
        logger.info("seed %d (%d of %d)", seed, len(results) + 1, count)
        results.append(
            merge(recipe.with_seed(seed), out / f"seed{seed}", parents=parents, **options)
        )
    summary = summarize(results)
    if is_main_process():
        text = json.dumps(summary.to_dict(), indent=1) + "\n"
        write_whole(out / SUMMARY_FILE, text.encode())
    return summary


def summarize(results: Sequence[MergeResult]) -> SeedSummary:
    """Return the summary of runs that differ only in their seeds."""
    seeds = [_describe(result) for result in results]
    mean = {key: statistics.fmean(row[key] for row in seeds) for key in _COLUMNS}
    deviation = {key: statistics.stdev(row[key] for row in seeds) for key in _COLUMNS}
    significant = [row for row in seeds if row["p"] < _SIGNIFICANT]
    better = sum(row["merged"] > row["parent"] for row in significant)
    return SeedSummary(seeds, mean, deviation, better, len(significant) - better)


def _describe(result: MergeResult) -> dict[str, Any]:
    report = result.report
    roles = {row.role: row for row in report.models}
    rows = {
        "merged": report.merged,
        "searched": roles.get("searched", report.merged),
        "parent": result.record.row(report.paired.against),
    }
    return {
        "seed": result.record.final.merge["seed"],
        **{name: row.test.accuracy for name, row in rows.items()},
        "against": report.paired.against,
        "p": report.paired.p,
    }


def _percentages(values: dict[str, Any]) -> str:
    return "  ".join(f"{100 * values[key]:7.2f}" for key in _COLUMNS)


def run_seeds(args: argparse.Namespace, recipe: Recipe) -> int:
    """Run `mega-hf merge --seeds K`; several processes are launched once, for all seeds."""
    out = args.out or Path("runs") / f"{recipe.name}.seeds"
    _check(args, recipe, out)
    if args.dry_run:
        return print_estimate(args, recipe, out, runs=args.seeds)
    seeds = range(recipe.merge.seed, recipe.merge.seed + args.seeds)
    for seed in seeds:
        RunFolder(out / f"seed{seed}").check(recipe.with_seed(seed), args.overwrite, args.update)
    code = launch_processes(args)
    if code is not None:
        return code
    options = search_options(args) | {"overwrite": args.overwrite, "update": args.update}
    summary = merge_seeds(recipe, args.seeds, out, keep=args.keep, **options)
    if is_main_process():
        print_answer(summary)
    return 0


def _check(args: argparse.Namespace, recipe: Recipe, out: Path) -> None:
    """Raise MegaError if the arguments make no sense with --seeds."""
    if args.seeds < 2:
        raise RecipeError(
            "--seeds needs at least 2",
            expected="2 or more",
            got=args.seeds,
            hint="use e.g. --seeds 3",
        )
    for option, value in (("--only", args.only), ("--push", recipe.push)):
        if value:
            raise RecipeError(
                f"--seeds and {option} can't be combined",
                expected="one of them",
                got="both",
                hint=f"use --seeds now, and {option} with one of the seeds later",
            )
    if (out / "recipe.yaml").exists():
        raise RunError(
            "the folder holds a single run",
            where=str(out),
            expected="a folder for the runs of all seeds",
            got="recipe.yaml of one run",
            hint="choose another --out",
        )
