"""Resolve the paths and references of a recipe, and check that they exist."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mega_hf.errors import RecipeError
from mega_hf.recipe.document import Document, Location
from mega_hf.recipe.messages import recipe_error
from mega_hf.recipe.placeholders import references
from mega_hf.recipe.tree import parent_name

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@(?!.*\.\.)[\w./-]+)?$")
_DATA_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_TIMM = re.compile(r"^timm:[\w.]+$")
_PICKLES = (".bin", ".pth", ".pt", ".pkl", ".ckpt", ".tar", ".h5")
_DATA = "ORG/NAME or ./FOLDER"
_FORMS = (
    "ORG/NAME[@REVISION], ./FOLDER, timm:ARCH.TAG, {arch, weights, num_classes}, {train: {seed}}"
)
_CONVERT = (
    "convert it on a machine where you trust it: load it with its own library, then"
    " timm.models.save_for_hf(model, DIR, safe_serialization=True) or model.save_pretrained(DIR)"
)
Problem = tuple[str, str, object, str]  # what is wrong, expected, got, hint


def is_local(reference: str) -> bool:
    """Return whether a reference is a folder: it starts with `.`, `/` or `~`."""
    return reference.startswith((".", "/", "~"))


def absolute(reference: str) -> str:
    """Make a folder's path absolute; return any other reference unchanged."""
    return str(_expand_home(reference).resolve()) if is_local(reference) else reference


def _expand_home(path: str) -> Path:
    """Expand ~ in a path; leave a user unknown to the system as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def resolve_paths(document: Document) -> None:
    """Make the tree's local paths absolute; a relative one starts at the folder of its file."""
    for key, block in references(document.tree):
        path = block[key[-1]]
        if isinstance(path, str) and (key[-1] == "weights" or is_local(path)):
            # not resolve(): links are followed when the path is read
            block[key[-1]] = os.path.abspath(document.origin(key).base / _expand_home(path))


def check_sources(
    sources: dict[str, str], usable: list[str], error: Callable[..., Exception]
) -> None:
    """Raise if training starts from an unknown name, or in the end from its own result.

    Args:
        sources: trained parent -> the model that its training starts from.
        usable: the names of parents and snapshots.
        error: makes the exception from (key, expected, got, hint).
    """
    for name, source in sources.items():
        key = ["parents", name, "train", "from"]
        if source not in usable and not is_local(source) and not re.search("[/:]", source):
            expected = f"one of {', '.join(usable)}, or {_FORMS}"
            raise error(key, expected, source, "use the name of a parent or of a model")
        path, step = [name], source
        while (above := parent_name(step)) in sources:
            path.append(above)
            if path.count(above) > 1 and above != name:
                break  # a cycle of other parents, which is reported there
            if above == name:
                expected, hint = "no cycle", "use from: null for the parent to train from scratch"
                raise error(key, expected, " from ".join(path), hint)
            step = sources[above]


def check_files(recipe: dict[str, Any], document: Document) -> None:
    """Check references and local files, before anything is loaded.

    Args:
        recipe: the recipe as plain values.
        document: knows file and line of each key.

    Raises:
        RecipeError: a reference is malformed, or a local file is missing.
    """
    problems: list[tuple[Location, Problem | None]] = []
    path = recipe["data"]["path"]
    if isinstance(path, dict):
        pass  # a placeholder: check_no_placeholders raises where the data is needed
    elif is_local(path) and not Path(path).is_dir():
        missing = ("no such data folder", "a folder", path, "check the path")
        problems.append((("data", "path"), missing))
    elif not is_local(path) and not _DATA_ID.match(path):
        hint = "start the path of a folder with ./"
        problems.append((("data", "path"), ("not a data set", _DATA, path, hint)))
    for name, parent in recipe["parents"].items():
        if isinstance(parent, dict) and "train" in parent:
            key = ("parents", name, "train", "from")
            problems.append((key, _check_source(parent["train"].get("from"))))
        else:
            problems.append((("parents", name), check_parent(parent)))
    problems.append((("train", "from"), _check_source((recipe["train"] or {}).get("from"))))
    errors = [recipe_error(document, key, *problem) for key, problem in problems if problem]
    if errors:
        raise RecipeError.join(errors)


def _check_source(source: Any) -> Problem | None:
    """Return what is wrong with a model that training starts from; names are checked before."""
    is_model = isinstance(source, str) and re.search("^[.~]|[/:]", source)
    return check_parent(source) if is_model else None


def check_parent(parent: Any) -> Problem | None:
    """Return what is wrong with a parent's reference: (what, expected, got, hint); else None.

    Args:
        parent: a reference, or a parent's block as plain values.
    """
    if isinstance(parent, dict):
        weights = parent.get("weights")
        if not isinstance(weights, str):
            return None
        if not weights.endswith(".safetensors"):
            return "not safetensors", "a .safetensors file", weights, _CONVERT
        if not Path(weights).is_file():
            return "no such file", "a .safetensors file", weights, "check the path"
        return None
    if not is_local(parent):
        if _HUB_ID.match(parent) or _TIMM.match(parent):
            return None
        return "not a model", _FORMS, repr(parent), "start the path of a folder with ./ or /"
    folder = Path(parent)
    if not folder.is_dir():
        expected = "a folder with config.json and *.safetensors"
        return "no such parent folder", expected, parent, "check the path"
    if not (folder / "config.json").is_file():
        expected, hint = "the layout of timm or transformers", "save the model with its own library"
        return "the parent has no config.json", expected, parent, hint
    if not list(folder.glob("*.safetensors")):
        pickles = [file for file in sorted(folder.iterdir()) if file.suffix in _PICKLES]
        got = f"only {pickles[0].name}, a pickle, which can run code" if pickles else "none"
        return "the parent has no safetensors file", "*.safetensors", got, _CONVERT
    return None
