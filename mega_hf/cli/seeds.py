"""`merge --seeds K`: the same search from several seeds, each a run of its own; what they gave, in
the mean."""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mega_hf.cli.arguments import without
from mega_hf.errors import LaunchError, RecipeError, RunError
from mega_hf.recipe.schema import Recipe
from mega_hf.report.result import MergeResult
from mega_hf.report.table import format_p
from mega_hf.runtime.files import write_whole
from mega_hf.runtime.untrusted import printable

NAME = "seeds.json"
_SURE = 0.05


@dataclass(frozen=True)
class SeedSummary:
    """What a search gave from several seeds; `str` is a table.

    Attributes:
        seeds: for each {seed, merged, searched, parent, against, p}: accuracies on test in [0, 1]
            of the merged model, of the search's own best, and of the parent that is best on
            validation; its name; McNemar's p against it.
        mean: of merged, searched and parent.
        deviation: their standard deviations over the seeds.
        better: seeds whose merged model is better than its best parent by p < 0.05.
        worse: seeds whose merged model is worse, likewise.
    """

    seeds: list[dict[str, Any]]
    mean: dict[str, float]
    deviation: dict[str, float]
    better: int
    worse: int

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{'seed':>6}  {'merged':>7}  {'search':>7}  {'parent':>7}  against it"]
        for one in self.seeds:
            cells = "  ".join(f"{100 * one[key]:7.2f}" for key in _SHOWN)
            lines.append(
                f"{one['seed']:6}  {cells}  {printable(one['against'])}, p {format_p(one['p'])}"
            )
        mean, spread = (
            "  ".join(f"{100 * values[key]:7.2f}" for key in _SHOWN)
            for values in (self.mean, self.deviation)
        )
        lines += [f"{'mean':>6}  {mean}", f"{'+-':>6}  {spread}  standard deviation over the seeds"]
        verdict = (
            f"Better than the parent that is best on validation (p < {_SURE}) in {self.better} of"
        )
        return "\n".join(
            [*lines, "", f"{verdict} {len(self.seeds)}, worse in {self.worse}; per cent on test."]
        )


_SHOWN = ("merged", "searched", "parent")


def summarize(results: Sequence[MergeResult]) -> SeedSummary:
    """Return what runs gave that differ by their seed."""
    seeds = [_describe(result) for result in results]
    mean = {key: statistics.fmean(one[key] for one in seeds) for key in _SHOWN}
    deviation = {
        key: statistics.stdev([one[key] for one in seeds]) if len(seeds) > 1 else 0.0
        for key in _SHOWN
    }
    sure = [one for one in seeds if one["p"] < _SURE]
    better = sum(one["merged"] > one["parent"] for one in sure)
    return SeedSummary(seeds, mean, deviation, better, len(sure) - better)


def _describe(result: MergeResult) -> dict[str, Any]:
    report = result.report
    rows = {model.role: model for model in report.models}
    shown = {
        "merged": report.merged,
        "searched": rows.get("searched", report.merged),
        "parent": result.record.row(report.paired.against),
    }
    return {
        "seed": result.record.final.merge["seed"],
        **{key: model.test.accuracy for key, model in shown.items()},
        "against": report.paired.against,
        "p": report.paired.p,
    }


def merge_seeds(
    args: argparse.Namespace,
    words: list[str],
    recipe: Recipe,
    merge: Callable[[argparse.Namespace, list[str]], int],
) -> tuple[int, SeedSummary | None]:
    """Run `mega-hf merge` once for each seed, each in a folder of its own; runs that are finished
    are not run again.

    Args:
        args: what the command was asked, as `check_seeds` saw it.
        words: the command's words.
        recipe: what is merged.
        merge: what runs one.

    Returns:
        the exit code of the first run that failed, or 0 and what they gave.
    """
    out, results = args.out, []
    for offset in range(args.seeds):
        one, seed = copy.copy(args), recipe.merge.seed + offset
        one.seeds, one.out = None, out / f"seed{seed}"
        changes = [f"merge.seed={seed}"]
        if isinstance(recipe.merges, dict):
            own = {
                name: node.seed
                for name, node in recipe.merges.items()
                if node.seed != recipe.merge.seed
            }
            changes += [f"merges.{name}.seed={value + offset}" for name, value in own.items()]
        one.overrides = [*args.overrides, *changes]
        more = [word for change in changes for word in ("--set", change)]
        if recipe.trained and args.parents is None:
            one.parents = out / "parents"
            more += ["--parents", str(one.parents)]
        code = merge(one, [*without(words, "--seeds", "--out"), "--out", str(one.out), *more])
        if code:
            return code, None
        results.append(MergeResult.load(one.out))
    found = summarize(results)
    write_whole(out / NAME, (json.dumps(found.to_dict(), indent=1) + "\n").encode())
    return 0, found


def check_seeds(args: argparse.Namespace, recipe: Recipe) -> Path:
    """Return the folder for the runs of all seeds.

    Raises:
        MegaError: several seeds can't be run so.
    """
    out = Path(args.out or Path("runs") / f"{recipe.name}.seeds")
    if args.seeds < 2:
        raise RecipeError(
            "nothing to repeat",
            where="--seeds",
            expected="2 or more",
            got=args.seeds,
            hint="more",
        )
    asked = {"--only": args.only, "--push": recipe.push}
    given = [flag for flag, value in asked.items() if value]
    if given:
        hint = f"--seeds without it; then {given[0]} for one of the seeds"
        raise RecipeError(
            "not for several seeds",
            expected="one of them",
            got=f"--seeds and {given[0]}",
            hint=hint,
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LaunchError(
            "several seeds under a launcher",
            expected="mega-hf merge RECIPE --seeds K --num-processes N",
            got="processes that were started already",
            hint="that command: it starts them anew for each seed",
        )
    if (out / "recipe.yaml").exists():
        raise RunError(
            "a run lies there",
            where=str(out),
            expected="a folder for the runs of all seeds",
            got="one run's",
            hint="another --out",
        )
    return out
