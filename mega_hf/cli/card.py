"""`mega-hf card`: write the model card of a finished run again."""

from __future__ import annotations

import argparse
from pathlib import Path

from mega_hf.cli.arguments import Commands
from mega_hf.cli.output import print_answer

OVERWRITE_CARD = "replace the whole existing card, the text written by hand included"


def add_parser(commands: Commands) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "card",
        help="write the model card and the plots of a finished run again",
        description="Write the model card and the plots of a finished run again, from its"
        " result.json alone. Text that was written into the card by hand is kept.",
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="run folder")
    parser.add_argument("--overwrite-card", action="store_true", help=OVERWRITE_CARD)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run `mega-hf card`."""
    from mega_hf.report.card import write_card
    from mega_hf.report.result import MergeResult
    from mega_hf.runtime.lock import lock_folder

    MergeResult.load(args.folder)  # raises before a folder that holds no run is locked
    with lock_folder(args.folder, "wait until it has finished"):
        write_card(MergeResult.load(args.folder), args.overwrite_card)
    print_answer(args.folder / "README.md")
    return 0
