"""What was local where a recipe was run: `{local: NAME, sha256: ...}`, until `--set KEY=PATH` says
where it is."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from mega_hf.errors import RecipeError

# In a Recipe such a place is a text, as every other reference is; in YAML and JSON it is the
# mapping.
_MARK = "absent:"


def is_absent(reference: str) -> bool:
    """Say whether a recipe's reference stands for something that is not here."""
    return reference.startswith(_MARK)


def name_there(reference: str) -> str:
    """Return what something that is not here was called where the recipe was run."""
    return str(json.loads(reference.removeprefix(_MARK))["local"])


def is_placeholder(value: object) -> bool:
    """Say whether a value of a recipe's tree is {local: NAME}, perhaps with sha256."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("local"), str)
        and value.keys() <= {"local", "sha256"}
    )


def mark(tree: Any) -> Any:
    """Return a recipe's tree with a text in the place of each {local, sha256}.

    Raises:
        RecipeError: such a text stands there already.
    """
    tree = copy.deepcopy(tree)
    for key, inner in places(tree):
        value = inner[key[-1]]
        if isinstance(value, str) and is_absent(value):
            raise RecipeError(
                f"{'.'.join(key)}: not a place",
                expected="a reference, a path, or {local: NAME, sha256: ...}",
                got=value,
                hint="mend it",
            )
        if is_placeholder(value):
            inner[key[-1]] = _MARK + json.dumps(value)
    return tree


def unmark(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's tree with {local, sha256} in the place of each such text."""
    tree = copy.deepcopy(tree)
    for key, inner in places(tree):
        value = inner[key[-1]]
        if isinstance(value, str) and is_absent(value):
            inner[key[-1]] = json.loads(value.removeprefix(_MARK))
    return tree


def absent_keys(tree: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the key of everything in a recipe's tree that is not here, as `("parents", "a")`."""
    return [key for key, inner in places(tree) if is_placeholder(inner[key[-1]])]


def is_found_again(found: dict[str, Any], known: dict[str, Any]) -> bool:
    """Say whether a recipe's tree is another one with nothing but places for what was absent
    there."""
    found = copy.deepcopy(found)
    here = dict(places(found))
    for key, there in places(known):
        if is_placeholder(there[key[-1]]) and key in here:
            here[key][key[-1]] = there[key[-1]]
    return found == known and list(found["parents"]) == list(known["parents"])


def check_no_placeholders(tree: dict[str, Any]) -> None:
    """Raise RecipeError where a recipe's tree names something that is not here."""
    keys = [".".join(key) for key in absent_keys(tree)]
    if keys:
        raise RecipeError(
            "this recipe was run with local files that are not here",
            expected="a place for each",
            got="none for " + ", ".join(keys),
            hint="add " + " ".join(f"--set {key}=PATH" for key in keys),
        )


def places(tree: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield wherever a reference or a path may stand: its key, and the mapping that it stands
    in."""
    tree = tree if isinstance(tree, dict) else {}
    parents = tree["parents"] if isinstance(tree.get("parents"), dict) else {}
    blocks: list[tuple[tuple[str, ...], Any]] = [(("data", "path"), tree.get("data"))]
    for name, parent in parents.items():
        if isinstance(parent, dict) and not is_placeholder(parent):
            train = parent.get("train")
            blocks += [
                (("parents", name, "weights"), parent),
                (("parents", name, "train", "from"), train),
            ]
        else:
            blocks.append((("parents", name), parents))
    blocks.append((("train", "from"), tree.get("train")))
    for key, block in blocks:
        if isinstance(block, dict) and key[-1] in block:
            yield key, block
