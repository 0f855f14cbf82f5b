"""`mega-hf train`: train the parents that a recipe gives by seeds."""

from __future__ import annotations

import argparse
from pathlib import Path

from mega_hf.cli.arguments import Commands, add_run_arguments
from mega_hf.cli.launch import is_main_process, launch_processes
from mega_hf.cli.output import print_answer


def add_parser(commands: Commands) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "train",
        help="train the parents that a recipe gives by seeds, without merging them",
        description="Train the parents that a recipe gives by seeds, without merging them. The same"
        " command resumes an interrupted training.",
    )
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="recipe with parents given by seeds")
    parser.add_argument(
        "--parent", metavar="NAME", help="train this parent only, and those that it starts from"
    )
    add_run_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run `mega-hf train`."""
    from mega_hf.recipe.schema import Recipe

    recipe = Recipe.from_yaml(args.recipe, args.overrides)
    code = launch_processes(args, args.out or Path("runs") / recipe.name)
    if code is not None:
        return code
    from mega_hf.run.pipeline import train

    trained = train(
        recipe,
        args.out,
        parent=args.parent,
        update=args.update,
        parents=args.parents,
        progress=not args.quiet,
    )
    if is_main_process():
        print_answer("\n".join(f"{name}  {folder}" for name, folder in trained.items()))
    return 0
