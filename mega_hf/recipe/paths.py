"""Resolve the paths and references of a recipe, and check that they exist."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mega_hf.errors import RecipeError
from mega_hf.recipe.document import Document, Location
from mega_hf.recipe.messages import _finding
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


def is_local(reference: str) -> bool:
    """Say whether a reference is a folder: it starts with `.`, `/` or `~`."""
    return reference.startswith((".", "/", "~"))


def absolute(reference: str) -> str:
    """Make a folder's path absolute, relative to the working folder; leave any other reference
    alone."""
    return str(_home(reference).resolve()) if is_local(reference) else reference


def _home(text: str) -> Path:
    """Return a path whose ~ is spelled out, unless nobody has that name or home: then it is said to
    be missing."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def resolve_paths(document: Document) -> None:
    """Make the tree's local paths absolute; a relative one starts at the folder of its file."""
    for key, block in references(document.tree):
        path = block[key[-1]]
        if isinstance(path, str) and (key[-1] == "weights" or is_local(path)):
            # not resolve(): links are followed when the path is read
            block[key[-1]] = os.path.abspath(document.origin(key).base / _home(path))


def check_sources(
    sources: dict[str, str], usable: list[str], error: Callable[..., Exception]
) -> None:
    """Raise `error` where training starts `from` a name that is no parent, or in the end from
    itself."""
    for name, source in sources.items():
        where = ["parents", name, "train", "from"]
        if source not in usable and not is_local(source) and not re.search("[/:]", source):
            raise error(
                where,
                f"one of {', '.join(usable)}, or {_FORMS}",
                source,
                "name a parent or a model",
            )
        path, step = [name], source
        while (above := parent_name(step)) in sources:
            path.append(above)
            if path.count(above) > 1 and above != name:
                break  # the cycle is another's: it is said there
            if above == name:
                hint = "from: null for the one that is trained from scratch"
                raise error(
                    where,
                    "parents that are not trained from themselves",
                    " from ".join(path),
                    hint,
                )
            step = sources[above]


def check_files(recipe: dict[str, Any], document: Document) -> None:
    """Refuse references that can't be right and local files that aren't there, before anything is
    loaded."""
    findings = []
    path = recipe["data"]["path"]
    if isinstance(path, dict):
        pass  # a placeholder: check_no_placeholders raises where the data is needed
    elif is_local(path) and not Path(path).is_dir():
        findings.append(
            _finding(
                document,
                ("data", "path"),
                "no such data folder",
                "a folder",
                path,
                "check the path",
            )
        )
    elif not is_local(path) and not _DATA_ID.match(path):
        findings.append(
            _finding(
                document,
                ("data", "path"),
                "not a data set",
                _DATA,
                path,
                "a folder's path starts with ./",
            )
        )
    for name, parent in recipe["parents"].items():
        if not (isinstance(parent, dict) and "train" in parent):
            problem = check_parent(parent)
            findings += [_finding(document, ("parents", name), *problem)] if problem else []
        elif "from" in parent["train"]:
            findings += _check_source(
                parent["train"]["from"], ("parents", name, "train", "from"), document
            )
    findings += _check_source((recipe["train"] or {}).get("from"), ("train", "from"), document)
    if findings:
        raise RecipeError.join(findings)


def _check_source(source: Any, at: Location, document: Document) -> list[RecipeError]:
    """Return what is wrong with a model that training starts from; names of parents have been
    checked."""
    problem = (
        check_parent(source)
        if isinstance(source, str) and re.search("^[.~]|[/:]", source)
        else None
    )
    return [_finding(document, at, *problem)] if problem else []


def check_parent(parent: Any) -> tuple[str, str, object, str] | None:
    """Return (what, expected, got, hint) if a parent's reference can't be right, else None."""
    if isinstance(parent, dict):
        weights = parent.get("weights")
        if not isinstance(weights, str):
            return None
        if not weights.endswith(".safetensors"):
            return "not safetensors", "a .safetensors file", weights, _convert(Path(weights))
        if not Path(weights).is_file():
            return "no such file", "a .safetensors file", weights, "check the path"
        return None
    if not is_local(parent):
        known = _HUB_ID.match(parent) or _TIMM.match(parent)
        return (
            None
            if known
            else ("not a parent", _FORMS, repr(parent), "a folder's path starts with ./ or /")
        )
    folder = Path(parent)
    if not folder.is_dir():
        return (
            "no such parent folder",
            "a folder with config.json and *.safetensors",
            parent,
            "check the path",
        )
    if not (folder / "config.json").is_file():
        layout = "timm's or transformers' layout"
        return "the parent has no config.json", layout, parent, "save it with its own library"
    if not list(folder.glob("*.safetensors")):
        pickles = [f for f in sorted(folder.iterdir()) if f.suffix in _PICKLES]
        got = f"only {pickles[0].name}, a pickle that could run code" if pickles else "none"
        return "the parent has no safetensors file", "*.safetensors", got, _convert(folder)
    return None


def _convert(path: Path) -> str:
    return (
        "convert it where you trust it: load it with its own library, then "
        "timm.models.save_for_hf(model, DIR, safe_serialization=True) or model.save_pretrained(DIR)"
    )
