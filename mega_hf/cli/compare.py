"""`mega-hf compare`: check whether models can be merged."""

from __future__ import annotations

import argparse
import json

from mega_hf.cli.arguments import (
    Commands,
    add_data_columns,
    add_json,
    add_quiet,
    data_set,
    positive_int,
)
from mega_hf.cli.output import print_answer
from mega_hf.errors import RecipeError


def add_parser(commands: Commands) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "compare",
        help="check whether models can be merged; exit code 1 if not",
        description="Check whether models can be merged, and print how far apart they are. The exit"
        " code is 1 if they can't be merged.",
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="two or more: ORG/NAME[@REVISION], timm:ARCH.TAG or ./FOLDER",
    )
    parser.add_argument(
        "--data",
        help="data set, ORG/NAME or ./FOLDER: also print the accuracy along the line between each"
        " two models, and advise how to merge them",
    )
    parser.add_argument(
        "--split",
        help="split of --data, or a slice of one: train[45000:] (default: validation, else train)",
    )
    parser.add_argument(
        "--sample",
        type=positive_int,
        default=1000,
        metavar="N",
        help="number of examples, drawn at random from the split (default: 1000)",
    )
    add_data_columns(parser)
    add_quiet(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run `mega-hf compare`."""
    if len(set(args.models)) < 2:
        raise RecipeError(
            "compare needs at least two different models",
            expected="two or more models",
            got=", ".join(args.models),
            hint="name another model",
        )
    from mega_hf.evaluation.compare import compare

    data = data_set(args) if args.data else None
    comparison = compare(args.models, data, args.split, args.sample, progress=not args.quiet)
    print_answer(json.dumps(comparison.to_dict()) if args.json else comparison)
    return 0 if comparison.mergeable else 1
