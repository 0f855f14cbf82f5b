"""`mega-hf push`: push a finished run to the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from mega_hf.cli.arguments import Commands, add_quiet
from mega_hf.cli.card import OVERWRITE_CARD
from mega_hf.cli.output import print_answer


def add_parser(commands: Commands) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "push",
        help="push a finished run to the Hub",
        description="Push a finished run to the Hub in one commit: the merged model, its card, the"
        " recipe, the journal, the result and the parents that were trained for the run.",
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="run folder")
    parser.add_argument(
        "repository", metavar="ORG/NAME", help="Hub repository; created if it does not exist"
    )
    parser.add_argument("--private", action="store_true", help="create a private repository")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--create-pr", action="store_true", help="open a pull request instead of committing to main"
    )
    where.add_argument(
        "--branch", metavar="B", help="commit to this branch; created if it does not exist"
    )
    parser.add_argument("--message", metavar="M", help="first line of the commit message")
    parser.add_argument(
        "--license",
        metavar="L",
        help="license of the merged model, e.g. apache-2.0; needed if the parents have none or"
        " different ones",
    )
    parser.add_argument(
        "--with-nodes", action="store_true", help="push the intermediate models of a tree too"
    )
    parser.add_argument(
        "--without-parents",
        action="store_true",
        help="leave out the parents that were trained for the run; others can't verify it without"
        " them",
    )
    parser.add_argument(
        "--parents",
        type=Path,
        metavar="DIR",
        help="folder of the trained parents (default: parents/ in the run folder)",
    )
    parser.add_argument("--overwrite-card", action="store_true", help=OVERWRITE_CARD)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything and list the files that would be pushed; push nothing",
    )
    add_quiet(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run `mega-hf push`."""
    from mega_hf.hub.push import plan_push, push

    send = plan_push if args.dry_run else push
    answer = send(
        args.folder,
        args.repository,
        private=args.private,
        create_pr=args.create_pr,
        branch=args.branch,
        message=args.message,
        license=args.license,
        with_nodes=args.with_nodes,
        with_parents=not args.without_parents,
        parents=args.parents,
        overwrite_card=args.overwrite_card,
    )
    print_answer(answer)
    return 0
