"""The recipe that a command line asks for: a file, or models given by name."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from mega_hf.errors import RecipeError
from mega_hf.recipe.data import Data
from mega_hf.recipe.document import Document, Origin
from mega_hf.recipe.paths import absolute
from mega_hf.recipe.schema import RESERVED, Recipe


def data_of(args: argparse.Namespace) -> Data:
    """Return the data set that a command line names, and its columns."""
    return Data(
        path=absolute(args.data),
        name=args.name,
        revision=args.revision,
        image=args.image,
        label=args.label,
    )


def asked_recipe(args: argparse.Namespace) -> Recipe:
    """Return the recipe that `mega-hf merge` is asked to make.

    Raises:
        RecipeError: it can't be read, or one model or no data set is named.
    """
    first = args.sources[0]
    if len(args.sources) == 1:
        if not first.endswith((".yaml", ".yml")) and not Path(first).is_file():
            hint = "name a second model, or a recipe that ends in .yaml"
            raise RecipeError(
                "one parent only",
                expected="RECIPE.yaml, or two models or more",
                got=first,
                hint=hint,
            )
        shortcuts = {
            "data.path": args.data,
            "data.validation": args.validation,
            "data.test": args.test,
        }
        shortcuts["push.repo"] = args.push
        return Recipe.from_yaml(
            first, [*args.overrides, *(f"{k}={v}" for k, v in shortcuts.items() if v)]
        )
    if not args.data:
        raise RecipeError(
            "no data set",
            expected="--data ORG/NAME or ./FOLDER",
            got="nothing",
            hint="name the data set with --data",
        )
    data = {"path": args.data, "validation": args.validation, "test": args.test}
    parents = _names(args.sources)
    name = args.out.name if args.out else "+".join(parents)
    tree = {"name": _plain(name) or "merge", "data": data, "parents": parents}
    tree |= {"push": {"repo": args.push}} if args.push else {}
    return Recipe.from_document(
        Document(tree, {(): Origin("command line", Path.cwd())}), args.overrides
    )


def _plain(text: str) -> str:
    """Make a name of letters, digits and . _ + - out of anything, perhaps an empty one."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("._+-")[:100]


def _names(references: list[str]) -> dict[str, str]:
    """Name parents given on the command line after their folders or repositories."""
    names: dict[str, str] = {}
    for reference in references:
        stem = (
            _plain(reference.partition("@")[0].rstrip("/").rpartition("/")[2].replace("+", "-"))
            or "parent"
        )
        name, copy = stem, 2
        while name in names or name in RESERVED:
            name, copy = f"{stem}-{copy}", copy + 1
        names[name] = reference
    return names
