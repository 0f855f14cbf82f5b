"""`mega-hf verify`: rebuild a merge from its journal and compare."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mega_hf.cli.arguments import Commands, add_json, add_quiet, positive_int
from mega_hf.cli.output import print_answer
from mega_hf.errors import MegaError, RecipeError, VerificationError


def add_parser(commands: Commands) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "verify",
        help="rebuild a merge from its journal and its parents and compare; exit code 1 if it"
        " differs",
        description="Rebuild a merge from its journal and its parents, and compare it with the"
        " weights, result.json and the card. This needs no data, except with --evaluate. The exit"
        " code is 1 if something differs, and the message names it.",
    )
    parser.add_argument(
        "run_name",
        metavar="RUN | ORG/NAME[@REVISION]",
        help="run folder, a copy of one, or a merge on the Hub",
    )
    parser.add_argument(
        "--parent",
        dest="places",
        action="append",
        default=[],
        type=_place,
        metavar="NAME=PATH",
        help="folder of a parent that was local where the run was made; may be repeated",
    )
    parser.add_argument(
        "--parents",
        type=Path,
        metavar="DIR",
        help="folder of the parents that were trained for the run (default: parents/ in the run)",
    )
    parser.add_argument(
        "--evaluate",
        type=positive_int,
        metavar="K",
        help="also evaluate every model of the report and K random individuals of the journal"
        " again; needs the data set",
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="folder of the data set, if it was local where the run was made",
    )
    add_json(parser)
    add_quiet(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run `mega-hf verify`."""
    from mega_hf.verification.verify import verify

    if args.data and args.evaluate is None:
        raise RecipeError(
            "--data needs --evaluate",
            expected="--evaluate K with --data",
            got="--data alone",
            hint="add --evaluate K; verify reads no data without it",
        )
    try:
        verified = verify(
            args.run_name,
            parents=dict(args.places),
            trained=args.parents,
            evaluate=args.evaluate,
            data=args.data,
            progress=not args.quiet,
        )
    except MegaError as error:
        if args.json:  # `reproduced` is null where the comparison was not possible
            reproduced = False if isinstance(error, VerificationError) else None
            print_answer(json.dumps({"reproduced": reproduced, **error.to_dict()}))
        raise
    print_answer(json.dumps({"reproduced": True, **verified.to_dict()}) if args.json else verified)
    return 0


def _place(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, got {text}")
    return name, path
