"""Turn pydantic's errors into RecipeErrors with file, line and hint."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from mega_hf.errors import RecipeError
from mega_hf.recipe.document import Document, Location

# what pydantic adds to a location for the members of unions and for keys of dicts
_TAGS = {
    "[key]",
    "slice",
    "sample",
    "reference",
    "placeholder",
    "file",
    "trained",
    "shape",
    "nodes",
}


def recipe_error(
    document: Document,
    location: Location,
    what: str,
    expected: object,
    got: object,
    hint: str | None = None,
) -> RecipeError:
    """Return the error of one entry of a recipe, with its key, file and line."""
    return RecipeError(
        f"{'.'.join(map(str, location))}: {what}",
        where=document.origin(location).label,
        expected=expected,
        got=got,
        hint=hint,
    )


def all_errors(errors: Sequence[Any], document: Document) -> list[RecipeError]:
    """Return a RecipeError for each of pydantic's errors.

    An error in a shared block is not repeated for the nodes and parents that inherit it.
    """
    wrong_blocks = {error["loc"][0] for error in errors if error["loc"]}
    heirs = {
        block
        for shared, block in (("merge", "merges"), ("train", "parents"))
        if shared in wrong_blocks
    }
    return [
        message
        for error in errors
        if not (error["loc"] and error["loc"][0] in heirs and _is_inherited(error, document))
        for message in _messages(error, document)
    ]


def _is_inherited(error: Any, document: Document) -> bool:
    """Return whether the value of an error is missing at its location, so that it is inherited."""
    if error["type"] == "missing":
        return False
    context = error.get("ctx", {})
    keys = context.get("keys") or context.get("key")
    written = _value_at(document.tree, _without_tags(error["loc"], document.tree))
    if keys and isinstance(written, dict):
        return not any(key in written for key in keys)
    return written is None


def _messages(error: dict[str, Any], document: Document) -> list[RecipeError]:
    location = _without_tags(error["loc"], document.tree)
    context = error.get("ctx", {})
    if error["type"] == "unknown":
        # A key of the shared block is reported there.
        written = _value_at(document.tree, location) or {}
        return [
            _unknown_key(document, (*location, key), context["known"])
            for key in context["keys"]
            if key in written
        ]
    if error["type"] == "invalid":
        location = (*location, *context["key"])
        in_parent = location[0] == "parents" and location[2:] == ("train", "from")
        if in_parent and _value_at(document.tree, location) is None:
            location = location[2:]  # the shared train block has it
        what, expected, got, hint = (
            "invalid value",
            context["expected"],
            context["got"],
            context["hint"],
        )
    else:
        what, expected, got, hint = _describe(error, location, document)
    return [recipe_error(document, location, what, expected, got, hint)]


def _describe(
    error: dict[str, Any], location: Location, document: Document
) -> tuple[str, str, object, str]:
    """Return (what, expected, got, hint) of an error that pydantic itself raised."""
    written = _show(_value_at(document.tree, location))
    if error["type"] == "missing":
        return "missing", f"the key {location[-1]}", "nothing", f"add {location[-1]}: ..."
    if location[-1:] == ("parents",) and error["type"] == "too_short":
        count = error.get("ctx", {}).get("actual_length", 0)
        return "too few", "two parents or more", count, "add a parent"
    if "[key]" in error["loc"]:
        expected = "a name of letters, digits and . _ + -; at most 100, the first no sign"
        return "invalid name", expected, repr(location[-1]), "use another name"
    if location == ("merges",) and error["type"] == "literal_error":
        expected = "joint, pairwise, or nodes: {NAME: {parents: [a, b]}, ...}"
        return "invalid value", expected, written, "use one of these"
    expected = error["msg"].removeprefix("Input should be ")
    if error["type"] == "too_short":
        expected = "a mapping of one entry or more"
    elif expected.startswith("a valid dictionary"):
        expected = "a mapping"
    elif error["type"] == "string_pattern_mismatch":
        expected = "a name of letters, digits and . _ + -"
    return "invalid value", expected, written, "fix this value, or remove it to use the default"


def _unknown_key(document: Document, location: Location, known: list[str]) -> RecipeError:
    key = str(location[-1])
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "remove this key"
    if location == ("train", "seed"):
        hint = "give each parent its own seed: parents: {NAME: {train: {seed: ...}}}"
    expected = f"one of {', '.join(known)}"
    return recipe_error(document, location, "unknown key", expected, key, hint)


def _without_tags(location: Sequence[Any], tree: Any) -> Location:
    """Return a location without pydantic's tags, by following it through the tree."""
    found: list[str | int] = []
    for i, part in enumerate(location):
        is_missing_key = isinstance(tree, dict) and i == len(location) - 1 and part not in _TAGS
        if _contains(tree, part):
            tree = tree[part]
        elif not is_missing_key:
            continue
        found.append(part)
    return tuple(found)


def _value_at(tree: Any, location: Location) -> Any:
    """Return the value at a location, None if there is none."""
    for part in location:
        tree = tree[part] if _contains(tree, part) else None
    return tree


def _contains(tree: Any, part: Any) -> bool:
    if isinstance(tree, Mapping):
        return part in tree
    return isinstance(tree, list) and part in range(len(tree))


def _show(value: Any) -> str:
    text = "nothing" if value is None else f"{value!r} ({type(value).__name__})"
    return text if len(text) < 200 else text[:200] + " ..."
