"""Compare the requested recipe with the one in the run folder, whose references are pinned."""

from __future__ import annotations

from collections.abc import Mapping

from mega_hf.recipe.data import Data
from mega_hf.recipe.parents import TrainedParent
from mega_hf.recipe.schema import Recipe


def names_of_pinned(asked: Recipe, pinned: Recipe) -> dict[str, str]:
    """Return what was asked for by a name that may come to mean something else, as `main`: key ->
    that name."""
    now = _references(pinned)
    return {key: name for key, name in _references(asked).items() if now.get(key) != name}


def fill_open(asked: Recipe, known: Recipe, names: Mapping[str, str]) -> Recipe:
    """Return a recipe with what it leaves open (revisions, columns, splits) as the known recipe
    found it.

    Args:
        asked: the recipe.
        known: what was run, its revisions pinned.
        names: what these revisions were called, as `names_of_pinned` gave it.
    """
    pinned = _references(known)
    same = {
        key: pinned[key]
        for key, name in _references(asked).items()
        if names.get(key) == name and key in pinned
    }
    data = asked.data
    if known.data.path == asked.data.path:
        revision = {"revision": same["data.revision"]} if "data.revision" in same else {}
        data = Data.model_validate(
            known.data.model_dump() | data.model_dump(exclude_none=True) | revision
        )
    parents = dict(asked.parents)
    for name, parent in parents.items():
        if isinstance(parent, str):
            parents[name] = same.get(f"parents.{name}", parent)
        elif isinstance(parent, TrainedParent) and f"parents.{name}.from" in same:
            train = parent.train.model_copy(update={"source": same[f"parents.{name}.from"]})
            parents[name] = parent.model_copy(update={"train": train})
    return asked.model_copy(update={"data": data, "parents": parents})


def _references(recipe: Recipe) -> dict[str, str]:
    """Return everything that names something on the Hub, or may: place in the recipe -> reference
    or revision."""
    found = {
        f"parents.{name}": parent
        for name, parent in recipe.parents.items()
        if isinstance(parent, str)
    }
    sources = {name: parent.train.source for name, parent in recipe.trained.items()}
    found |= {
        f"parents.{name}.from": s
        for name, s in sources.items()
        if isinstance(s, str) and s not in recipe.usable
    }
    return found | ({"data.revision": recipe.data.revision} if recipe.data.revision else {})
