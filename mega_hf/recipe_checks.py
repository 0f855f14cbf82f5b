"""What is checked of a recipe beyond its types: paths, references, files; and how findings are worded."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mega_hf.errors import RecipeError
from mega_hf.limits import RECIPE_LEVELS, RECIPE_TEXT, RECIPE_VALUES, is_plain
from mega_hf.strict_yaml import Document, Location
from mega_hf.tree import base

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@(?!.*\.\.)[\w./-]+)?$")
_DATA_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_TIMM = re.compile(r"^timm:[\w.]+$")
_PICKLES = (".bin", ".pth", ".pt", ".pkl", ".ckpt", ".tar", ".h5")
_DATA = "ORG/NAME or ./FOLDER"
_FORMS = "ORG/NAME[@REVISION], ./FOLDER, timm:ARCH.TAG, {arch, weights, num_classes}, {train: {seed}}"


def is_local(reference: str) -> bool:
    """Say whether a reference is a folder: it starts with `.`, `/` or `~`."""
    return reference.startswith((".", "/", "~"))


def absolute(reference: str) -> str:
    """Make a folder's path absolute, relative to the working folder; leave any other reference alone."""
    return str(_home(reference).resolve()) if is_local(reference) else reference


def _home(text: str) -> Path:
    """Return a path whose ~ is spelled out, unless nobody has that name or home: then it is said to be missing."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def refuse_strange(document: Document) -> None:
    """Raise RecipeError where a value is none of plain YAML, or a text could be obeyed by a terminal."""
    waiting: list[tuple[Location, Any]] = [((), document.tree)]
    seen = 0
    while waiting:
        at, value = waiting.pop()
        seen += 1
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        waiting += [((*at, key), one) for key, one in inner]
        named = at[-1] if at else ""
        problem = None
        if len(at) > RECIPE_LEVELS or seen > RECIPE_VALUES:
            problem = (f"at most {RECIPE_LEVELS} levels and {RECIPE_VALUES:,} values", "more")
        elif any(isinstance(text, str) and not is_plain(text) for text in (value, named)):
            problem = ("printable characters, without marks of direction", ascii(value if at else named)[:200])
        elif isinstance(value, str) and len(value) > RECIPE_TEXT:
            problem = (f"a text of at most {RECIPE_TEXT:,} characters", f"{len(value):,}")
        elif isinstance(value, float) and not math.isfinite(value):
            problem = ("a finite number", str(value))
        elif isinstance(value, int) and value.bit_length() > 200:
            problem = ("a smaller number", "one of dozens of digits")
        elif value is not None and not isinstance(value, str | int | float | dict | list):
            problem = ("a text, a number, true, false, a list or a mapping", type(value).__name__)
        if problem:
            where = tuple(ascii(part)[1:-1][:100] if isinstance(part, str) else part for part in at)
            raise RecipeError(
                f"{'.'.join(map(str, where))}: not usable", where=document.origin(at).label, expected=problem[0],
                got=problem[1], remedy="mend it",
            )  # fmt: skip


def resolve_paths(document: Document) -> None:
    """Make every local path of the tree absolute, relative to the file or folder that it was written in."""

    def placed(at: Location, text: Any, always: bool = False) -> Any:
        if not isinstance(text, str) or not (always or is_local(text)):
            return text
        path = _home(text)
        return os.path.abspath(document.origin(at).base / path)  # links are followed when it is read, not here

    data, parents, train = (document.tree.get(key) for key in ("data", "parents", "train"))
    if isinstance(data, dict) and "path" in data:
        data["path"] = placed(("data", "path"), data["path"])
    if isinstance(train, dict) and "from" in train:
        train["from"] = placed(("train", "from"), train["from"])
    if not isinstance(parents, dict):
        return
    for name, parent in parents.items():
        if isinstance(parent, dict) and "weights" in parent:
            parent["weights"] = placed(("parents", name, "weights"), parent["weights"], always=True)
        elif isinstance(parent, dict) and isinstance(parent.get("train"), dict):
            if "from" in parent["train"]:
                parent["train"]["from"] = placed(("parents", name, "train", "from"), parent["train"]["from"])
        else:
            parents[name] = placed(("parents", name), parent)


def refuse_twins(parents: dict[str, Any], error: Callable[..., Exception]) -> None:
    """Raise `error` where two names stand for one and the same parent."""
    seen: dict[str, str] = {}
    for name, parent in parents.items():
        key = json.dumps(parent, sort_keys=True)
        if key in seen:
            where, remedy = ["parents", name], "list each model once"
            raise error(where, f"another model than {seen[key]}", "the same twice", remedy)
        seen[key] = name


def refuse_idle_granularity(nodes: Mapping[str, Any], explicit: bool, error: Callable[..., Exception]) -> None:
    """Raise `error` where a granularity is asked for and no merge is by mixing; `explicit`: nodes are named."""
    idle = [name for name, node in nodes.items() if node.granularity != "layer"]
    if idle and all(node.encoding == "direct" for node in nodes.values()):
        where, got = ["merges", idle[0]] if explicit else ["merge"], nodes[idle[0]].granularity
        raise error([*where, "granularity"], "encoding: mixing, which alone has one", got, "add it, or leave this out")


def refuse_sources(sources: dict[str, str | None], usable: list[str], error: Callable[..., Exception]) -> None:
    """Raise `error` where training starts `from` a name that is no parent, or in the end from itself."""
    for name, source in sources.items():
        where = ["parents", name, "train", "from"]
        if source is not None and source not in usable and not is_local(source) and not re.search("[/:]", source):
            raise error(where, f"one of {', '.join(usable)}, or {_FORMS}", source, "name a parent or a model")
        path, step = [name], source
        while step is not None and (above := base(step)) in sources:
            path.append(above)
            if path.count(above) > 1 and above != name:
                break  # the cycle is another's: it is said there
            if above == name:
                remedy = "from: null for the one that is trained from scratch"
                raise error(where, "parents that are not trained from themselves", " from ".join(path), remedy)
            step = sources[above]


def check_files(recipe: dict[str, Any], document: Document) -> None:
    """Refuse references that can't be right and local files that aren't there, before anything is loaded."""
    findings = []
    path = recipe["data"]["path"]
    if isinstance(path, dict):
        pass  # absent: said where it is needed
    elif is_local(path) and not Path(path).is_dir():
        findings.append(
            _finding(document, ("data", "path"), "no such data folder", "a folder", path, "check the path")
        )
    elif not is_local(path) and not _DATA_ID.match(path):
        findings.append(
            _finding(document, ("data", "path"), "not a data set", _DATA, path, "a folder's path starts with ./")
        )
    for name, parent in recipe["parents"].items():
        if not (isinstance(parent, dict) and "train" in parent):
            problem = check_parent(parent)
            findings += [_finding(document, ("parents", name), *problem)] if problem else []
        elif "from" in parent["train"]:
            findings += _check_source(parent["train"]["from"], ("parents", name, "train", "from"), document)
    findings += _check_source((recipe["train"] or {}).get("from"), ("train", "from"), document)
    if findings:
        raise RecipeError.join(findings)


def _check_source(source: Any, at: Location, document: Document) -> list[RecipeError]:
    """Return what is wrong with a model that training starts from; names of parents have been checked."""
    problem = check_parent(source) if isinstance(source, str) and re.search("^[.~]|[/:]", source) else None
    return [_finding(document, at, *problem)] if problem else []


def check_parent(parent: Any) -> tuple[str, str, object, str] | None:
    """Return (what, expected, got, remedy) if a parent's reference can't be right, else None."""
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
        return None if known else ("not a parent", _FORMS, repr(parent), "a folder's path starts with ./ or /")
    folder = Path(parent)
    if not folder.is_dir():
        return "no such parent folder", "a folder with config.json and *.safetensors", parent, "check the path"
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


def _finding(
    document: Document, at: Location, what: str, expected: object, got: object, remedy: str | None = None
) -> RecipeError:
    dotted = ".".join(map(str, at))
    return RecipeError(f"{dotted}: {what}", where=document.origin(at).label, expected=expected, got=got, remedy=remedy)


def all_findings(errors: Sequence[Any], document: Document) -> list[RecipeError]:
    """Word all findings of pydantic's; what is wrong in a shared block is not said again of those that inherit it."""
    wrong_blocks = {error["loc"][0] for error in errors if error["loc"]}
    heirs = {block for shared, block in (("merge", "merges"), ("train", "parents")) if shared in wrong_blocks}
    return [
        finding
        for error in errors
        if not (error["loc"] and error["loc"][0] in heirs and _is_inherited(error, document))
        for finding in _findings(error, document)
    ]


def _is_inherited(error: Any, document: Document) -> bool:
    """Say whether the value that an error is about is not written at its own place."""
    at, context = _without_tags(error["loc"], document.tree), error.get("ctx", {})
    keys = context.get("keys") or context.get("key")
    if error["type"] == "missing":
        return False
    written = _at(document.tree, at)
    return not any(key in written for key in keys) if keys and isinstance(written, dict) else written is None


def _findings(error: dict[str, Any], document: Document) -> list[RecipeError]:
    """Word one finding of pydantic's as expected, got, remedy at a line."""
    at = _without_tags(error["loc"], document.tree)
    context = error.get("ctx", {})
    if error["type"] == "unknown":
        written = _at(document.tree, at) or {}  # what is inherited is said of the shared block
        return [_unknown(document, (*at, k), k, context["known"]) for k in context["keys"] if k in written]
    if error["type"] == "impossible":
        at = (*at, *context["key"])
        if at[0] == "parents" and at[2:] == ("train", "from") and _at(document.tree, at) is None:
            at = at[2:]  # it stands in the shared block
        return [_finding(document, at, "impossible", context["expected"], context["got"], context["remedy"] or None)]
    if error["type"] == "missing":
        message = _finding(document, at, "missing", f"the key {at[-1]}", "nothing", f"add {at[-1]}: ...")
        return [message]
    if at[-1:] == ("parents",) and error["type"] == "too_short":
        return [_finding(document, at, "too few", "two parents or more", context.get("actual_length", 0), "add one")]
    if "[key]" in error["loc"]:
        expected = "a name of letters, digits and . _ + -, at most 100, a letter or a digit first"
        return [_finding(document, at, "not a name", expected, repr(at[-1]), "rename it")]
    if at == ("merges",) and error["type"] == "literal_error":
        expected = "joint, pairwise, or nodes: {NAME: {parents: [a, b]}, ...}"
        return [_finding(document, at, "not usable", expected, _show(_at(document.tree, at)), "one of these")]
    expected = error["msg"].removeprefix("Input should be ")
    expected = "a mapping of one entry or more" if error["type"] == "too_short" else expected
    expected = "a mapping" if expected.startswith("a valid dictionary") else expected
    expected = "a name of letters, digits and . _ + -" if error["type"] == "string_pattern_mismatch" else expected
    remedy = f"mend {'.'.join(map(str, at))}, or leave it out where it has a default"
    return [_finding(document, at, "not usable", expected, _show(_at(document.tree, at)), remedy)]


def _unknown(document: Document, at: Location, key: str, known: list[str]) -> RecipeError:
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]}?" if near else "leave it out"
    if at == ("train", "seed"):
        remedy = "each parent has a seed of its own: parents: {NAME: {train: {seed: ...}}}"
    return _finding(document, at, "unknown key", "one of " + ", ".join(known), key, remedy)


def _without_tags(location: tuple[Any, ...], tree: Any) -> Location:
    """Drop what pydantic adds to a location for unions and dict keys, by walking the tree beside it."""
    at: list[str | int] = []
    for i, part in enumerate(location):
        is_last = i == len(location) - 1
        if _holds(tree, part):
            tree = tree[part]
        elif not (
            isinstance(tree, dict)
            and is_last
            and part not in ("[key]", "slice", "sample", "reference", "file", "trained", "shape", "nodes")
        ):
            continue
        at.append(part)
    return tuple(at)


def _at(tree: Any, location: Location) -> Any:
    for part in location:
        tree = tree[part] if _holds(tree, part) else None
    return tree


def _holds(tree: Any, part: Any) -> bool:
    return part in tree if isinstance(tree, dict) else isinstance(tree, list) and part in range(len(tree))


def _show(value: Any) -> str:
    text = "nothing" if value is None else f"{value!r} ({type(value).__name__})"
    return text if len(text) < 200 else text[:200] + " ..."
