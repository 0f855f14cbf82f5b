"""The command line's words: every command and option, with its help."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """examples:
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
"""

_CARD = "replace the card that is there, what was written by hand included"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="mega-hf",
        description="Merge models of one architecture into a single better one, by evolution.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mega-hf {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_merge(
        commands.add_parser("merge", help="merge the parents of a recipe, or models given by name")
    )
    _add_train(
        commands.add_parser(
            "train", help="train the parents of a recipe that are given by seeds, no more"
        )
    )
    _add_evaluate(commands.add_parser("evaluate", help="measure one model on one split"))
    _add_compare(
        commands.add_parser("compare", help="say whether models can be merged; exit code 1 if not")
    )
    _add_card(
        commands.add_parser("card", help="write a run's card again, from the run folder alone")
    )
    sent = "push a finished run to the Hub: model, card, recipe, journal, result, parents"
    _add_push(commands.add_parser("push", help=sent))
    _add_pull(commands.add_parser("pull", help="restore the run folder of a merge that was pushed"))
    again = (
        "make a merge again from its journal and parents, with no data, and compare; exit code 1 if"
        " it is another"
    )
    _add_verify(commands.add_parser("verify", help=again))
    timed = (
        "run a recipe's search and time it against bare loops and a naive search; what it makes is"
        " removed"
    )
    _add_bench(commands.add_parser("bench", help=timed))
    return parser


def without(words: list[str], *flags: str) -> list[str]:
    """Return a command's words without some flags and their values, written in either form."""
    kept, is_value = [], False
    for word in words:
        if (
            not is_value
            and word not in flags
            and not word.startswith(tuple(f"{flag}=" for flag in flags))
        ):
            kept.append(word)
        is_value = word in flags and not is_value
    return kept


def _add_merge(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "sources",
        nargs="+",
        metavar="RECIPE.yaml | MODEL",
        help="one recipe, or two or more models (ORG/NAME, ./FOLDER)",
    )
    add("--data", help="data set of models given by name: ORG/NAME or ./FOLDER")
    add("--validation", help="validation split (default: the data set's own, else rows of train)")
    add("--test", help="test split (default: test)")
    add(
        "--dry-run",
        action="store_true",
        help="check everything and say what it would cost; make nothing",
    )
    add("--only", metavar="NODE", help="run one merge of a tree, with what it needs; no report")
    again = "search from K seeds, each in a folder of its own, and say what they gave in the mean"
    add("--seeds", type=int, metavar="K", help=again)
    keep = "all intermediate models of a tree, or the final one alone (default: all)"
    add("--keep", choices=("all", "final"), default="all", help=keep)
    _add_computing(parser)
    add(
        "--push",
        metavar="ORG/NAME",
        help="push the merge to the Hub once it is made (as push.repo in the recipe)",
    )
    _add_running(parser, may_overwrite=True)
    parser.set_defaults(command="merge")


def _add_computing(parser: argparse.ArgumentParser) -> None:
    """Add how a search computes."""
    add = parser.add_argument
    paths = (
        "how the model runs; auto: as the run was begun, else compiled where that saves time"
        " (default: auto)"
    )
    add("--forward", choices=("auto", "eager", "compiled"), default="auto", help=paths)
    full = "measure every individual on every row; the result is the same, only later"
    add("--full-evaluation", action="store_true", help=full)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE.yaml", help="a recipe with parents given by seeds"
    )
    parser.add_argument("--parent", metavar="NAME", help="train this one, and what it starts from")
    _add_running(parser, may_overwrite=False)
    parser.set_defaults(command="train")


def _add_running(parser: argparse.ArgumentParser, may_overwrite: bool) -> None:
    """Add what merge and train have in common."""
    add = parser.add_argument
    _add_recipe(parser)
    add("--out", type=Path, help="the run folder (default: runs/NAME)")
    kept = "where trained parents are kept (default: parents/ in the run folder)"
    add("--parents", type=Path, metavar="DIR", help=kept)
    fresh = parser.add_mutually_exclusive_group()
    fresh.add_argument(
        "--update", action="store_true", help="run what a changed recipe changes, keep the rest"
    )
    if may_overwrite:
        everything = (
            "start afresh: all that an earlier run left in the run folder is deleted, its"
            " parents too"
        )
        fresh.add_argument("--overwrite", action="store_true", help=everything)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add what changes a recipe, and who works on it."""
    add = parser.add_argument
    override = "override a key: merge.seed=7"
    add("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help=override)
    add(
        "--num-processes",
        type=_positive,
        metavar="N",
        help="processes (default: every GPU, else one)",
    )
    add("--quiet", action="store_true", help="no progress bars")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="ORG/NAME[@REVISION], timm:ARCH.TAG, ./FOLDER or a run folder",
    )
    add("--data", required=True, help="ORG/NAME or ./FOLDER")
    add("--split", required=True, help="a split or a slice of one: test, train[45000:]")
    _add_columns(parser)
    add("--batch-size", type=_positive, default=128)
    add("--json", action="store_true", help="print a record instead of a sentence")
    parser.set_defaults(command="evaluate")


def _add_columns(parser: argparse.ArgumentParser) -> None:
    """Add what of a data set is meant."""
    add = parser.add_argument
    add("--name", help="the data set's configuration")
    add("--revision", help="the data set's revision")
    add("--image", help="the picture column (default: the one Image column)")
    add("--label", help="the label column (default: the one ClassLabel column)")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="two or more: ORG/NAME[@REVISION], ./FOLDER")
    add(
        "--data",
        help=(
            "ORG/NAME or ./FOLDER: adds the accuracy along the line between each two, and what they"
            " need"
        ),
    )
    add(
        "--split",
        help=(
            "what of it to measure on: validation, train[45000:] (default: validation, else train)"
        ),
    )
    add(
        "--sample",
        type=_positive,
        default=1000,
        metavar="N",
        help="so many rows of that, at random (default: 1000)",
    )
    _add_columns(parser)
    add("--quiet", action="store_true", help="no progress bars")
    add("--json", action="store_true", help="print a record instead of a table")
    parser.set_defaults(command="compare")


def _add_card(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", type=Path, help="a run folder")
    parser.add_argument("--overwrite-card", action="store_true", help=_CARD)
    parser.set_defaults(command="card")


def _add_push(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="RUN", type=Path, help="a run folder")
    add("repository", metavar="ORG/NAME", help="the repository; made if it isn't there")
    add("--private", action="store_true", help="make it private")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--create-pr", action="store_true", help="open a pull request instead of committing"
    )
    where.add_argument(
        "--branch", metavar="B", help="commit to this branch; made if it isn't there"
    )
    add("--message", metavar="M", help="the commit's first line")
    add(
        "--license",
        metavar="L",
        help="e.g. apache-2.0; needed where the parents have none, or not the same",
    )
    add("--with-nodes", action="store_true", help="the intermediate models of a tree too")
    without = (
        "leave out the parents that were trained for the run; nobody who lacks them can verify it"
    )
    add("--without-parents", action="store_true", help=without)
    add(
        "--parents",
        type=Path,
        metavar="DIR",
        help="where those parents lie, if not in the run folder",
    )
    add("--overwrite-card", action="store_true", help=_CARD)
    add(
        "--dry-run",
        action="store_true",
        help="check everything and say what would be sent; send nothing",
    )
    add("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(command="push")


def _add_pull(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("repository", metavar="ORG/NAME[@REVISION]", help="a merge that mega-hf pushed")
    add("--out", type=Path, help="the run folder (default: runs/NAME)")
    add("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(command="pull")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "run",
        metavar="RUN | ORG/NAME[@REVISION]",
        help="a run folder, a copy of one, or a merge that was pushed",
    )
    place = "where a parent lies that was local where the run was made"
    add(
        "--parent",
        dest="places",
        action="append",
        default=[],
        type=_place,
        metavar="NAME=PATH",
        help=place,
    )
    add(
        "--parents",
        type=Path,
        metavar="DIR",
        help="where parents that were trained for the run lie",
    )
    measured = (
        "with the data, measure again: every model of the report, and so many random lines of the"
        " journal"
    )
    add("--evaluate", type=_positive, metavar="K", help=measured)
    add("--data", metavar="PATH", help="the data set, if it was local where the run was made")
    add("--json", action="store_true", help="print a record instead of sentences")
    add("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(command="verify")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("recipe", metavar="RECIPE.yaml", help="whose search is timed")
    _add_recipe(parser)
    _add_computing(parser)
    add(
        "--out",
        type=Path,
        help="a run folder to work in, removed at the end (default: runs/NAME.bench)",
    )
    add(
        "--parents",
        type=Path,
        metavar="DIR",
        help="where trained parents lie, else they are trained first",
    )
    add("--json", action="store_true", help="print a record instead of a table")
    parser.set_defaults(command="bench")


def _place(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, got {text}")
    return name, path


def _positive(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return number


def _version() -> str:
    from importlib.metadata import version

    return version("mega_hf")
