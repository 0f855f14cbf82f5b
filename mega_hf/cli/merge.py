"""`mega-hf merge`: merge the parents of a recipe, or models given by name."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mega_hf.cli.arguments import (
    Commands,
    add_run_arguments,
    add_search_arguments,
    requested_recipe,
    search_options,
)
from mega_hf.cli.launch import is_main_process, launch_processes
from mega_hf.cli.output import print_answer
from mega_hf.errors import RecipeError

if TYPE_CHECKING:
    from mega_hf.recipe.schema import Recipe
    from mega_hf.run.context import RunOptions


def add_parser(commands: Commands) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "merge",
        help="merge the parents of a recipe, or models given by name",
        description="Merge the parents of a recipe, or models given by name. The same command"
        " resumes an interrupted run, and prints the report of a finished one.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="RECIPE.yaml | MODEL",
        help="one recipe, or two or more models (ORG/NAME, timm:ARCH.TAG or ./FOLDER)",
    )
    parser.add_argument("--data", help="data set, for models given by name: ORG/NAME or ./FOLDER")
    parser.add_argument(
        "--validation",
        metavar="SPLIT",
        help="validation split (default: the data set's own, or else a sample of train)",
    )
    parser.add_argument("--test", metavar="SPLIT", help="test split (default: test)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything and print an estimate of time and memory; write nothing",
    )
    parser.add_argument(
        "--only",
        metavar="NODE",
        help="run one merge of a tree and the merges it needs; write no report",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="K",
        help="repeat the search with K seeds and report mean and standard deviation",
    )
    parser.add_argument(
        "--keep",
        choices=("all", "final"),
        default="all",
        help="keep all intermediate models of a tree, or the final one only (default: all)",
    )
    parser.add_argument(
        "--push",
        metavar="ORG/NAME",
        help="push the merged model to this Hub repository when it is finished",
    )
    add_search_arguments(parser)
    add_run_arguments(parser).add_argument(
        "--overwrite",
        action="store_true",
        help="delete the earlier run in the run folder, its trained parents included",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run `mega-hf merge`."""
    recipe = requested_recipe(args)
    if args.only is not None and args.push:
        raise RecipeError(
            "--only makes a part of a tree, which is not pushed",
            expected="--only or --push",
            got="both",
            hint="use --only now, and --push for the whole tree later",
        )
    if args.seeds is not None:
        from mega_hf.cli.seeds import run_seeds

        return run_seeds(args, recipe)
    out = args.out or Path("runs") / recipe.name
    if args.dry_run:
        return print_estimate(args, recipe, out)
    return _merge(args, recipe, out) if args.only is None else _merge_only(args, recipe, out)


def _merge(args: argparse.Namespace, recipe: Recipe, out: Path) -> int:
    from mega_hf.run.folder import RunFolder

    folder = RunFolder(out)
    folder.check(recipe, args.overwrite, args.update)
    result = None if args.overwrite or args.update else folder.finished()
    if result is None:
        _check_push(recipe)
        code = launch_processes(args, out)
        if code is not None:
            return code
        from mega_hf.run.pipeline import run_merge

        result = run_merge(recipe, folder, _run_options(args), args.keep)
    elif is_main_process():
        folder.tidy()
        if args.keep == "final":
            folder.drop_intermediates()
    if is_main_process():
        print_answer(f"{result.report}\n\n{result.merged}\n{result.folder / 'README.md'}")
        if recipe.push:
            from mega_hf.hub.push import push

            where = recipe.push.model_dump(exclude={"repo"})
            print_answer(push(result, recipe.push.repo, parents=args.parents, **where))
    return 0


def _merge_only(args: argparse.Namespace, recipe: Recipe, out: Path) -> int:
    from mega_hf.run.folder import RunFolder

    folder = RunFolder(out)
    folder.check(recipe, args.overwrite, args.update)
    code = launch_processes(args, out)
    if code is not None:
        return code
    from mega_hf.run.pipeline import run_merge_only

    merged = run_merge_only(recipe, args.only, folder, _run_options(args))
    if is_main_process():
        correct, rows = merged.record["correct"], merged.record["n"]
        print_answer(
            f"{merged.name}: {100 * correct / rows:.2f} % on validation ({correct} of {rows}"
            f" correct; the search selected on these examples)\n{merged.folder}\n"
            "Run the same command without --only for the whole tree and its report."
        )
    return 0


def _run_options(args: argparse.Namespace) -> RunOptions:
    from mega_hf.run.context import RunOptions

    return RunOptions(args.overwrite, args.update, **search_options(args))


def print_estimate(args: argparse.Namespace, recipe: Recipe, out: Path, runs: int = 1) -> int:
    """Check all that the run needs, and print what it would cost."""
    from mega_hf.run.estimate import estimate
    from mega_hf.run.folder import RunFolder

    kept = None if args.overwrite and args.parents is None else args.parents or out / "parents"
    ranking = RunFolder(out).ranking(recipe) if args.only and not args.overwrite else None
    with recipe.document.locating_errors():
        cost = estimate(recipe, args.num_processes or 1, args.only, kept, args.update, ranking)
    print_answer(replace(cost, runs=runs))
    if recipe.push and args.only is None:
        _check_push(recipe)
        print_answer(f"The merged model would then be pushed to {recipe.push.repo}.")
    return 0


def _check_push(recipe: Recipe) -> None:
    """Raise, before hours of work, what would keep the result from being pushed."""
    if recipe.push and is_main_process():
        from mega_hf.hub.push import check_push

        check_push(recipe, recipe.push)
