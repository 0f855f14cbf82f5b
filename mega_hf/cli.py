"""`mega-hf ...`: arguments in, one call of the API, a rendered answer out."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mega_hf.errors import MegaError, RecipeError

if TYPE_CHECKING:
    from mega_hf.recipe import Recipe

EXAMPLES = """examples:
  mega-hf merge recipes/quickstart.yaml
  mega-hf merge RECIPE.yaml --set merge.generations=40 --out runs/longer
  mega-hf merge ORG/A ORG/B --data ORG/NAME --out runs/x
  mega-hf compare ./a ./b
  mega-hf evaluate ./runs/x/merged --data ORG/NAME --split test
"""


WORKING = "readable inputs, and a disk with room that can be written"
AGAIN = "mend it; the same command goes on where it stopped"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 the answer is no, 2 an error, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = build_parser().parse_args(words)
    _quieten()
    try:
        return args.run(args, words)
    except MegaError as error:
        _say_error(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        _say_error("interrupted: what was measured is in the journal; the same command goes on from there")
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:
        _say_error(f"error: {MegaError('the system refused', expected=WORKING, got=error, remedy=AGAIN)}")
        return 2


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="mega-hf", description="Merge models of one architecture into a single better one, by evolution.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"mega-hf {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_merge(commands.add_parser("merge", help="merge the parents of a recipe, or models given by name"))
    _add_evaluate(commands.add_parser("evaluate", help="measure one model on one split"))
    _add_compare(commands.add_parser("compare", help="say whether models can be merged; exit code 1 if not"))
    _add_card(commands.add_parser("card", help="write a run's card again, from the run folder alone"))
    return parser


def _add_merge(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "sources",
        nargs="+",
        metavar="RECIPE.yaml | MODEL",
        help="one recipe, or two or more models (ORG/NAME, ./FOLDER)",
    )
    add(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key: merge.seed=7",
    )
    add("--out", type=Path, help="the run folder (default: runs/NAME)")
    add("--data", help="data set of models given by name: ORG/NAME or ./FOLDER")
    add("--validation", help="validation split (default: the data set's own, else rows of train)")
    add("--test", help="test split (default: test)")
    add("--dry-run", action="store_true", help="check everything and say what it would cost; make nothing")
    add("--overwrite", action="store_true", help="start afresh where an earlier run is")
    add("--num-processes", type=_positive, metavar="N", help="processes (default: every GPU, else one)")
    add("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=_merge)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="ORG/NAME[@REVISION], timm:ARCH.TAG, ./FOLDER or a run folder")
    add("--data", required=True, help="ORG/NAME or ./FOLDER")
    add("--split", required=True, help="a split or a slice of one: test, train[45000:]")
    add("--name", help="the data set's configuration")
    add("--revision", help="the data set's revision")
    add("--image", help="the picture column (default: the one Image column)")
    add("--label", help="the label column (default: the one ClassLabel column)")
    add("--batch-size", type=_positive, default=128)
    add("--json", action="store_true", help="print a record instead of a sentence")
    parser.set_defaults(run=_evaluate)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="two or more: ORG/NAME[@REVISION], ./FOLDER")
    parser.add_argument("--json", action="store_true", help="print a record instead of a table")
    parser.set_defaults(run=_compare)


def _add_card(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", type=Path, help="a run folder")
    parser.set_defaults(run=_card)


def _merge(args: argparse.Namespace, words: list[str]) -> int:
    recipe = _recipe(args)
    if args.dry_run:
        from mega_hf.estimate import estimate

        print(estimate(recipe, args.num_processes or 1))
        return 0
    from mega_hf.run_folder import RunFolder

    out = args.out or Path("runs") / recipe.name
    folder = RunFolder(out)
    folder.check(recipe, args.overwrite)
    result = None if args.overwrite else folder.finished()
    if result is None:
        from mega_hf.evaluation.processes import default_processes, is_launched, launch

        count = args.num_processes or default_processes()
        if count > 1 and not is_launched():
            return launch(count, _without_count(words))
        from mega_hf.pipeline import merge

        result = merge(recipe, out, overwrite=args.overwrite, progress=not args.quiet)
    if _is_main():
        print(f"{result.report}\n\n{result.merged}\n{result.folder / 'README.md'}")
    return 0


def _recipe(args: argparse.Namespace) -> Recipe:
    from mega_hf.recipe import Recipe

    first = args.sources[0]
    if len(args.sources) == 1:
        if not first.endswith((".yaml", ".yml")) and not Path(first).is_file():
            remedy = "name a second model, or a recipe that ends in .yaml"
            raise RecipeError(
                "one parent only", expected="RECIPE.yaml, or two models or more", got=first, remedy=remedy
            )
        shortcuts = {"data.path": args.data, "data.validation": args.validation, "data.test": args.test}
        return Recipe.from_yaml(first, [*args.overrides, *(f"{k}={v}" for k, v in shortcuts.items() if v)])
    if not args.data:
        raise RecipeError(
            "no data set",
            expected="--data ORG/NAME or ./FOLDER",
            got="nothing",
            remedy="name the data set with --data",
        )
    from mega_hf.strict_yaml import Document, Origin

    data = {"path": args.data, "validation": args.validation, "test": args.test}
    parents = _names(args.sources)
    name = args.out.name if args.out else "+".join(parents)
    tree = {"name": _plain(name) or "merge", "data": data, "parents": parents}
    return Recipe.from_document(Document(tree, {(): Origin("command line", Path.cwd())}), args.overrides)


def _plain(text: str) -> str:
    """Make a name of letters, digits and . _ + - out of anything, perhaps an empty one."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("._+-")[:100]


def _names(references: list[str]) -> dict[str, str]:
    """Name parents given on the command line after their folders or repositories."""
    names: dict[str, str] = {}
    for reference in references:
        stem = _plain(reference.partition("@")[0].rstrip("/").rpartition("/")[2]) or "parent"
        name, copy = stem, 2
        while name in names:
            name, copy = f"{stem}-{copy}", copy + 1
        names[name] = reference
    return names


def _evaluate(args: argparse.Namespace, words: list[str]) -> int:
    from mega_hf.measurement import evaluate
    from mega_hf.recipe import Data
    from mega_hf.recipe_checks import absolute

    data = Data(path=absolute(args.data), name=args.name, revision=args.revision, image=args.image, label=args.label)
    measured = evaluate(args.model, data, args.split, args.batch_size)
    print(json.dumps(measured.to_dict()) if args.json else measured)
    return 0


def _compare(args: argparse.Namespace, words: list[str]) -> int:
    if len(set(args.models)) < 2:
        raise RecipeError(
            "nothing to compare",
            expected="two models or more",
            got=", ".join(args.models),
            remedy="name another model",
        )
    from mega_hf.comparison import compare

    comparison = compare(args.models)
    print(json.dumps(comparison.to_dict()) if args.json else comparison)
    return 0 if comparison.mergeable else 1


def _card(args: argparse.Namespace, words: list[str]) -> int:
    from mega_hf.hf.card import render_card
    from mega_hf.plots import plot_fitness
    from mega_hf.result import MergeResult
    from mega_hf.run_folder import write_whole

    result = MergeResult.load(args.folder)
    write_whole(args.folder / "fitness.png", plot_fitness(result.record))
    write_whole(args.folder / "README.md", render_card(result).encode())
    print(args.folder / "README.md")
    return 0


def _positive(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return number


def _without_count(words: list[str]) -> list[str]:
    """Drop --num-processes: the processes that are started must not start others."""
    kept = [word for word in words if not word.startswith("--num-processes=")]
    if "--num-processes" in kept:
        at = kept.index("--num-processes")
        del kept[at : at + 2]
    return kept


def _quieten() -> None:
    """Let our own lines stand alone: warnings of ours, errors of the libraries'."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    logging.getLogger("mega_hf").setLevel(os.environ.get("MEGA_HF_VERBOSITY", "info").upper())
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _say_error(text: str) -> None:
    rank = os.environ.get("RANK", "0")
    print(f"mega-hf: {text}" if rank == "0" else f"mega-hf: process {rank}: {text.splitlines()[0]}", file=sys.stderr)


def _version() -> str:
    from mega_hf import __version__

    return __version__
