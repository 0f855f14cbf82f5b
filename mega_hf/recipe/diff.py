"""Complete a requested recipe from the one in the run folder, whose references are pinned."""

from __future__ import annotations

from collections.abc import Mapping

from mega_hf.recipe.data import Data
from mega_hf.recipe.parents import TrainedParent
from mega_hf.recipe.schema import Recipe


def names_of_pinned(requested: Recipe, pinned: Recipe) -> dict[str, str]:
    """Return the references that were pinned: key -> name as requested, such as `main`."""
    now = _references(pinned)
    return {key: name for key, name in _references(requested).items() if now.get(key) != name}


def fill_open(requested: Recipe, stored: Recipe, names: Mapping[str, str]) -> Recipe:
    """Return the requested recipe with open revisions, columns and splits as in the stored one.

    Args:
        requested: the recipe as the user gave it.
        stored: the recipe of the run folder, with pinned revisions.
        names: the names of these revisions, from `names_of_pinned`.
    """
    pinned = _references(stored)
    same = {
        key: pinned[key]
        for key, name in _references(requested).items()
        if names.get(key) == name and key in pinned
    }
    data = requested.data
    if stored.data.path == requested.data.path:
        revision = {"revision": same["data.revision"]} if "data.revision" in same else {}
        data = Data.model_validate(
            stored.data.model_dump() | data.model_dump(exclude_none=True) | revision
        )
    parents = dict(requested.parents)
    for name, parent in parents.items():
        if isinstance(parent, str):
            parents[name] = same.get(f"parents.{name}", parent)
        elif isinstance(parent, TrainedParent) and f"parents.{name}.from" in same:
            train = parent.train.model_copy(update={"source": same[f"parents.{name}.from"]})
            parents[name] = parent.model_copy(update={"train": train})
    return requested.model_copy(update={"data": data, "parents": parents})


def _references(recipe: Recipe) -> dict[str, str]:
    """Return all that may name something on the Hub: key -> reference or revision."""
    found = {
        f"parents.{name}": parent
        for name, parent in recipe.parents.items()
        if isinstance(parent, str)
    }
    sources = {name: parent.train.source for name, parent in recipe.trained.items()}
    found |= {
        f"parents.{name}.from": source
        for name, source in sources.items()
        if isinstance(source, str) and source not in recipe.usable
    }
    return found | ({"data.revision": recipe.data.revision} if recipe.data.revision else {})
