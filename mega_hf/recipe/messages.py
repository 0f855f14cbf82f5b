"""What is checked of a recipe beyond its types: paths, references, files; and how findings are
worded."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mega_hf.errors import RecipeError
from mega_hf.recipe.document import Document, Location


def check_distinct_references(parents: dict[str, Any], error: Callable[..., Exception]) -> None:
    """Raise `error` where two names stand for one and the same parent."""
    seen: dict[str, str] = {}
    for name, parent in parents.items():
        key = json.dumps(parent, sort_keys=True)
        if key in seen:
            where, hint = ["parents", name], "list each model once"
            raise error(where, f"another model than {seen[key]}", "the same twice", hint)
        seen[key] = name


def check_granularity(
    nodes: Mapping[str, Any], explicit: bool, error: Callable[..., Exception]
) -> None:
    """Raise `error` where a granularity is asked for and no merge is by mixing; `explicit`: nodes
    are named."""
    idle = [name for name, node in nodes.items() if node.granularity != "layer"]
    if idle and all(node.encoding == "direct" for node in nodes.values()):
        where, got = ["merges", idle[0]] if explicit else ["merge"], nodes[idle[0]].granularity
        raise error(
            [*where, "granularity"],
            "encoding: mixing, which alone has one",
            got,
            "add it, or leave this out",
        )


def _finding(
    document: Document,
    at: Location,
    what: str,
    expected: object,
    got: object,
    hint: str | None = None,
) -> RecipeError:
    dotted = ".".join(map(str, at))
    return RecipeError(
        f"{dotted}: {what}",
        where=document.origin(at).label,
        expected=expected,
        got=got,
        hint=hint,
    )


def all_findings(errors: Sequence[Any], document: Document) -> list[RecipeError]:
    """Word all findings of pydantic's; what is wrong in a shared block is not said again of those
    that inherit it."""
    wrong_blocks = {error["loc"][0] for error in errors if error["loc"]}
    heirs = {
        block
        for shared, block in (("merge", "merges"), ("train", "parents"))
        if shared in wrong_blocks
    }
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
    return (
        not any(key in written for key in keys)
        if keys and isinstance(written, dict)
        else written is None
    )


def _findings(error: dict[str, Any], document: Document) -> list[RecipeError]:
    """Word one finding of pydantic's as expected, got, hint at a line."""
    at = _without_tags(error["loc"], document.tree)
    context = error.get("ctx", {})
    if error["type"] == "unknown":
        written = _at(document.tree, at) or {}  # what is inherited is said of the shared block
        return [
            _unknown(document, (*at, k), k, context["known"])
            for k in context["keys"]
            if k in written
        ]
    if error["type"] == "impossible":
        at = (*at, *context["key"])
        if at[0] == "parents" and at[2:] == ("train", "from") and _at(document.tree, at) is None:
            at = at[2:]  # it stands in the shared block
        return [
            _finding(
                document,
                at,
                "impossible",
                context["expected"],
                context["got"],
                context["hint"] or None,
            )
        ]
    if error["type"] == "missing":
        message = _finding(
            document, at, "missing", f"the key {at[-1]}", "nothing", f"add {at[-1]}: ..."
        )
        return [message]
    if at[-1:] == ("parents",) and error["type"] == "too_short":
        return [
            _finding(
                document,
                at,
                "too few",
                "two parents or more",
                context.get("actual_length", 0),
                "add one",
            )
        ]
    if "[key]" in error["loc"]:
        expected = "a name of letters, digits and . _ + -, at most 100, a letter or a digit first"
        return [_finding(document, at, "not a name", expected, repr(at[-1]), "rename it")]
    if at == ("merges",) and error["type"] == "literal_error":
        expected = "joint, pairwise, or nodes: {NAME: {parents: [a, b]}, ...}"
        return [
            _finding(
                document, at, "not usable", expected, _show(_at(document.tree, at)), "one of these"
            )
        ]
    expected = error["msg"].removeprefix("Input should be ")
    expected = "a mapping of one entry or more" if error["type"] == "too_short" else expected
    expected = "a mapping" if expected.startswith("a valid dictionary") else expected
    expected = (
        "a name of letters, digits and . _ + -"
        if error["type"] == "string_pattern_mismatch"
        else expected
    )
    hint = f"mend {'.'.join(map(str, at))}, or leave it out where it has a default"
    return [_finding(document, at, "not usable", expected, _show(_at(document.tree, at)), hint)]


def _unknown(document: Document, at: Location, key: str, known: list[str]) -> RecipeError:
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "leave it out"
    if at == ("train", "seed"):
        hint = "each parent has a seed of its own: parents: {NAME: {train: {seed: ...}}}"
    return _finding(document, at, "unknown key", "one of " + ", ".join(known), key, hint)


def _without_tags(location: tuple[Any, ...], tree: Any) -> Location:
    """Drop what pydantic adds to a location for unions and dict keys, by walking the tree beside
    it."""
    at: list[str | int] = []
    for i, part in enumerate(location):
        is_last = i == len(location) - 1
        if _holds(tree, part):
            tree = tree[part]
        elif not (
            isinstance(tree, dict)
            and is_last
            and part
            not in (
                "[key]",
                "slice",
                "sample",
                "reference",
                "placeholder",
                "file",
                "trained",
                "shape",
                "nodes",
            )
        ):
            continue
        at.append(part)
    return tuple(at)


def _at(tree: Any, location: Location) -> Any:
    for part in location:
        tree = tree[part] if _holds(tree, part) else None
    return tree


def _holds(tree: Any, part: Any) -> bool:
    return (
        part in tree
        if isinstance(tree, dict)
        else isinstance(tree, list) and part in range(len(tree))
    )


def _show(value: Any) -> str:
    text = "nothing" if value is None else f"{value!r} ({type(value).__name__})"
    return text if len(text) < 200 else text[:200] + " ..."
