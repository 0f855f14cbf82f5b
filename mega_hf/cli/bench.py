"""`mega-hf bench`: time a recipe's search."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mega_hf.cli.arguments import (
    Commands,
    add_json,
    add_recipe_arguments,
    add_search_arguments,
    search_options,
)
from mega_hf.cli.launch import is_main_process, launch_processes
from mega_hf.cli.output import print_answer


def add_parser(commands: Commands) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "bench",
        help="time a recipe's search against plain evaluation loops and a naive search",
        description="Run a recipe's search, and time it against plain evaluation loops and a naive"
        " search. The run folder is removed at the end.",
    )
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="recipe whose search is timed")
    add_recipe_arguments(parser)
    add_search_arguments(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="temporary run folder, removed at the end (default: runs/NAME.bench)",
    )
    parser.add_argument(
        "--parents",
        type=Path,
        metavar="DIR",
        help="folder of the trained parents (default: train them first)",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run `mega-hf bench`."""
    from mega_hf.recipe.schema import Recipe

    recipe = Recipe.from_yaml(args.recipe, args.overrides)
    code = launch_processes(args)
    if code is not None:
        return code
    from mega_hf.run.benchmark import bench

    benchmark = bench(recipe, args.out, **search_options(args))
    if is_main_process():
        print_answer(json.dumps(benchmark.to_dict()) if args.json else benchmark)
    return 0
