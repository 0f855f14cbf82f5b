"""Arguments that several commands share, and the objects that are built from them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mega_hf.errors import RecipeError

if TYPE_CHECKING:
    from mega_hf.recipe.data import Data
    from mega_hf.recipe.schema import Recipe

Parser = argparse.ArgumentParser
Commands = argparse._SubParsersAction  # what `add_subparsers` returns; argparse has no public name


def add_recipe_arguments(parser: Parser) -> None:
    """Add the options of the commands that run a recipe."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the recipe, e.g. merge.seed=7; may be repeated",
    )
    parser.add_argument(
        "--num-processes",
        type=positive_int,
        metavar="N",
        help="number of processes (default: one per GPU, or one on the CPU)",
    )
    parser.add_argument(
        "--oversubscribe",
        action="store_true",
        help="allow more processes than this machine has cores or memory for",
    )
    add_quiet(parser)


def add_run_arguments(parser: Parser) -> argparse._MutuallyExclusiveGroup:
    """Add the options of merge and train; return the group that says what to replace."""
    add_recipe_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/NAME)")
    parser.add_argument(
        "--parents",
        type=Path,
        metavar="DIR",
        help="folder of the trained parents (default: parents/ in the run folder)",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--update",
        action="store_true",
        help="rerun what changed in the recipe since the earlier run, and keep the rest",
    )
    return group


def add_search_arguments(parser: Parser) -> None:
    """Add the options that say how a search evaluates models."""
    parser.add_argument(
        "--forward",
        choices=("auto", "eager", "compiled"),
        default="auto",
        help="how the model runs; auto resumes a run as it was started, and starts a new one"
        " compiled if that saves time (default: auto)",
    )
    parser.add_argument(
        "--full-evaluation",
        action="store_true",
        help="evaluate every individual on every example; the result is the same, but takes longer",
    )


def add_data_columns(parser: Parser) -> None:
    """Add the options that select a part of a data set."""
    parser.add_argument("--name", help="configuration of the data set")
    parser.add_argument("--revision", help="revision of the data set on the Hub (default: main)")
    parser.add_argument("--image", metavar="COLUMN", help="image column (default: the only one)")
    parser.add_argument("--label", metavar="COLUMN", help="label column (default: the only one)")


def add_quiet(parser: Parser) -> None:
    """Add --quiet."""
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")


def add_json(parser: Parser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def positive_int(text: str) -> int:
    """Return a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: the text is anything else.
    """
    number = int(text) if text.isdecimal() and text.isascii() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return number


def search_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments that merge, merge_only and bench share."""
    return {
        "parents": args.parents,
        "forward": args.forward,
        "full_evaluation": args.full_evaluation,
        "progress": not args.quiet,
    }


def data_set(args: argparse.Namespace) -> Data:
    """Return the data set that --data names, with its columns."""
    from mega_hf.recipe.data import Data
    from mega_hf.recipe.paths import absolute

    return Data(
        path=absolute(args.data),
        name=args.name,
        revision=args.revision,
        image=args.image,
        label=args.label,
    )


def requested_recipe(args: argparse.Namespace) -> Recipe:
    """Return the recipe that `mega-hf merge` names, or build one from two or more models.

    Raises:
        RecipeError: the recipe is invalid, or there is only one model or no data set.
    """
    from mega_hf.recipe.document import Document, Origin
    from mega_hf.recipe.schema import Recipe

    first = args.sources[0]
    if len(args.sources) == 1:
        if not first.endswith((".yaml", ".yml")) and not Path(first).is_file():
            raise RecipeError(
                "a merge needs at least two models",
                expected="RECIPE.yaml, or two or more models",
                got=first,
                hint="name a second model, or a recipe that ends in .yaml",
            )
        shortcuts = {
            "data.path": args.data,
            "data.validation": args.validation,
            "data.test": args.test,
            "push.repo": args.push,
        }
        changes = [f"{key}={value}" for key, value in shortcuts.items() if value]
        return Recipe.from_yaml(first, [*args.overrides, *changes])
    if not args.data:
        raise RecipeError(
            "models given by name need a data set",
            expected="--data ORG/NAME or --data ./FOLDER",
            got="no --data",
            hint="name the data set with --data",
        )
    parents = _parent_names(args.sources)
    name = args.out.name if args.out else "+".join(parents)
    tree: dict[str, Any] = {
        "name": _plain_name(name) or "merge",
        "data": {"path": args.data, "validation": args.validation, "test": args.test},
        "parents": parents,
    }
    if args.push:
        tree["push"] = {"repo": args.push}
    document = Document(tree, {(): Origin("command line", Path.cwd())})
    return Recipe.from_document(document, args.overrides)


def _parent_names(references: list[str]) -> dict[str, str]:
    """Name each model after its folder or repository, with a number where a name is taken."""
    from mega_hf.recipe.schema import RESERVED

    names: dict[str, str] = {}
    for reference in references:
        path = reference.partition("@")[0].rstrip("/")
        stem = _plain_name(path.rpartition("/")[2].replace("+", "-")) or "parent"
        name, copy = stem, 2
        while name in names or name in RESERVED:
            name, copy = f"{stem}-{copy}", copy + 1
        names[name] = reference
    return names


def _plain_name(text: str) -> str:
    """Keep letters, digits and . _ + - of a text; the result may be empty."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("._+-")[:100]
