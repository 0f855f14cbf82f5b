"""The shared `merge` and `train` blocks, which nodes and trained parents inherit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def apply_shared_blocks(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's tree with inherited keys copied into nodes and trained parents."""
    filled = dict(values)
    merges, merge, parents, train = (
        values.get(key) for key in ("merges", "merge", "parents", "train")
    )
    if isinstance(merges, dict):
        filled["merges"] = {name: _update(merge, node) for name, node in merges.items()}
    if isinstance(parents, dict):
        filled["parents"] = {
            name: (
                {**parent, "train": _update(train, parent["train"], nested=())}
                if isinstance(parent, dict) and "train" in parent
                else parent
            )
            for name, parent in parents.items()
        }
    return filled


def _update(shared: Any, own: Any, nested: tuple[str, ...] = ("mutation", "founders")) -> Any:
    """Return a shared block updated by a block's own keys; other values are checked later."""
    if not isinstance(own, dict) or not isinstance(shared, dict):
        return own
    inner = {key: _update(shared[key], own[key]) for key in nested if key in own and key in shared}
    return {**shared, **own, **inner}


def strip_shared_blocks(tree: dict[str, Any]) -> dict[str, Any]:
    """Remove from nodes and trained parents the keys that they would inherit, in place."""
    shared_merge, shared_train = tree["merge"], tree["train"] or {}
    for parent in tree["parents"].values():
        if isinstance(parent, dict) and "train" in parent:
            parent["train"] = _differing(parent["train"], shared_train)
    if isinstance(tree["merges"], dict):
        tree["merges"] = {
            name: _differing(node, shared_merge) for name, node in tree["merges"].items()
        }
    return tree


def _differing(own: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in own.items() if key not in shared or shared[key] != value}
