"""What was local where a recipe was run: `{local: NAME, sha256: ...}`, until `--set KEY=PATH` says where it is."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from mega_hf.errors import RecipeError

# In a Recipe such a place is a text, as every other reference is; in YAML and JSON it is the mapping.
_MARK = "absent:"


def is_absent(reference: object) -> bool:
    """Say whether a reference of a Recipe stands for something that is not here."""
    return isinstance(reference, str) and reference.startswith(_MARK)


def is_placeholder(value: object) -> bool:
    """Say whether a value of a recipe's tree is {local: NAME}, perhaps with sha256."""
    return isinstance(value, dict) and isinstance(value.get("local"), str) and value.keys() <= {"local", "sha256"}


def mark(tree: Any) -> Any:
    """Return a recipe's tree with a text in the place of each {local, sha256}."""
    if is_placeholder(tree):
        return _MARK + json.dumps(tree)
    return {key: mark(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def unmark(tree: Any) -> Any:
    """Return a recipe's tree with {local, sha256} in the place of each such text."""
    if is_absent(tree):
        return json.loads(tree.removeprefix(_MARK))
    return {key: unmark(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def absent_keys(tree: Any, *above: str) -> Iterator[tuple[str, ...]]:
    """Yield the key of everything in a recipe's tree that is not here, as `("parents", "a")`."""
    if is_placeholder(tree):
        yield above
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from absent_keys(value, *above, key)


def is_found_again(found: dict[str, Any], known: dict[str, Any]) -> bool:
    """Say whether a recipe's tree is another one with nothing but places for what was absent there."""
    found = copy.deepcopy(found)
    for key in absent_keys(known):
        inner, there = found, known
        for part in key[:-1]:
            inner, there = inner.get(part, {}), there[part]
            if not isinstance(inner, dict):
                return False
        inner[key[-1]] = there[key[-1]]
    return found == known and list(found["parents"]) == list(known["parents"])


def refuse_absent(tree: dict[str, Any]) -> None:
    """Raise RecipeError where a recipe's tree names something that is not here."""
    keys = [".".join(key) for key in absent_keys(tree)]
    if keys:
        raise RecipeError(
            "this recipe was run with local files that are not here", expected="a place for each",
            got="none for " + ", ".join(keys), remedy="add " + " ".join(f"--set {key}=PATH" for key in keys),
        )  # fmt: skip
