"""`mega-hf COMMAND ...`: parse the arguments, run the command, print its answer or its error."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from mega_hf.cli import bench, card, compare, evaluate, merge, pull, push, train, verify
from mega_hf.cli.launch import check_launched
from mega_hf.cli.output import check_output, print_error
from mega_hf.cli.signals import handle_signals, print_interrupted
from mega_hf.errors import Terminated
from mega_hf.runtime.environment import configure_logging

COMMANDS = (merge, train, evaluate, compare, card, push, pull, verify, bench)

_EPILOG = """examples:
  mega-hf merge recipes/quickstart.yaml
  mega-hf merge RECIPE.yaml --set merge.generations=40 --out runs/longer
  mega-hf merge ORG/A ORG/B --data ORG/NAME --out runs/x
  mega-hf merge recipes/cifar10-resnet20-tree4.yaml --dry-run
  mega-hf compare ./a ./b
  mega-hf evaluate ./runs/x/merged --data ORG/NAME --split test
  mega-hf push runs/x ME/MERGED --license apache-2.0
  mega-hf pull ME/MERGED --out runs/y
  mega-hf verify ME/MERGED
  mega-hf bench RECIPE.yaml

exit codes:
  0         done
  1         compare: the models can't be merged; verify: the run is not what it claims
  2         an error; the message says what was expected and what to do
  130, 143  interrupted by Ctrl-C or SIGTERM; the same merge or train command resumes
"""


class _Version(argparse.Action):
    """Look the version up only when it is printed: this takes longer than all of --help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"mega-hf {version('mega_hf')}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="mega-hf",
        description="Merge models of one architecture into a single one, by evolution.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, as `mega-hf --help` lists them."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with handle_signals() as received:
        try:
            check_output()
            code = _run(words)
            sys.stdout.flush()
            return code
        except BaseException as error:
            if received or isinstance(error, KeyboardInterrupt):
                # libraries may have turned the interrupt into another exception
                is_terminated = signal.SIGTERM in received or isinstance(error, Terminated)
                number = signal.SIGTERM if is_terminated else signal.SIGINT
                print_interrupted(number)
                return 128 + number
            failed = print_error(error)
            if failed is None:
                raise
            return failed


def _run(words: list[str]) -> int:
    try:
        args = build_parser().parse_args(words)
    except SystemExit:
        sys.stdout.flush()
        raise
    args.words = words
    check_launched()
    configure_logging(getattr(args, "quiet", False))
    return args.run(args)
