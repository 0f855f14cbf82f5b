"""`mega-hf evaluate`: evaluate one model on one split."""

from __future__ import annotations

import argparse
import json

from mega_hf.cli.arguments import Commands, add_data_columns, add_json, data_set, positive_int
from mega_hf.cli.output import print_answer


def add_parser(commands: Commands) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "evaluate",
        help="evaluate one model on one split",
        description="Print the accuracy of one model on one split, with its 95 % interval.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="ORG/NAME[@REVISION], timm:ARCH.TAG, ./FOLDER or a run folder",
    )
    parser.add_argument("--data", required=True, help="data set: ORG/NAME or ./FOLDER")
    parser.add_argument(
        "--split", required=True, help="split, or a slice of one: test, train[45000:]"
    )
    add_data_columns(parser)
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        default=128,
        metavar="N",
        help="images per forward pass (default: 128)",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run `mega-hf evaluate`."""
    from mega_hf.evaluation.evaluate import evaluate

    measurement = evaluate(args.model, data_set(args), args.split, args.batch_size)
    print_answer(json.dumps(measurement.to_dict()) if args.json else measurement)
    return 0
