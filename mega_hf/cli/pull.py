"""`mega-hf pull`: restore a run folder from the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from mega_hf.cli.arguments import Commands, add_quiet
from mega_hf.cli.output import print_answer


def add_parser(commands: Commands) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "pull",
        help="restore the run folder of a merge that was pushed",
        description="Restore the run folder of a merge that mega-hf pushed to the Hub.",
    )
    parser.add_argument(
        "repository", metavar="ORG/NAME[@REVISION]", help="repository that mega-hf pushed to"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/NAME)")
    add_quiet(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run `mega-hf pull`."""
    from mega_hf.hub.pull import pull

    result = pull(args.repository, args.out)
    print_answer(f"{result.report}\n\n{result.merged}\n{result.folder / 'recipe.yaml'}")
    return 0
