"""Another recipe in the same run folder: what is merely left open, and which nodes would run
again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

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


def changed_nodes(known: Recipe, asked: Recipe, ranking: Sequence[str] | None) -> list[str]:
    """Return the nodes of `asked` that a run of `known` can't have made, in the order in which they
    would run.

    Args:
        known: the recipe that was run.
        asked: the recipe to run now.
        ranking: the parents from best to worst, where they have been measured (`order: accuracy`).
    """
    if asked.order == "accuracy" and (ranking is None or set(ranking) != set(asked.parents)):
        ranking = None  # the pairs are not known before the parents are measured
    there = _fingerprints(known, ranking)
    return [
        node
        for node, fingerprint in _fingerprints(asked, ranking).items()
        if there.get(node) != fingerprint
    ]


def changed_trainings(known: Recipe, asked: Recipe) -> list[str]:
    """Return the parents that `asked` trains and that a run of `known` can't have left."""

    def made(recipe: Recipe) -> dict[str, list[Any]]:
        data = _decisive_data(recipe)
        return {
            name: [_parent(recipe, name, data), recipe.trained[name].train.snapshots]
            for name in recipe.trained
        }

    there, changed = made(known), []
    for name, (decisive, snapshots) in made(asked).items():
        if (
            name not in there
            or there[name][0] != decisive
            or not set(snapshots) <= set(there[name][1])
        ):
            changed.append(name)
    return changed


def _decisive_data(recipe: Recipe) -> dict[str, Any]:
    """Return what decides the training rows."""
    data = recipe.data.model_dump(mode="json", exclude={"calibration", "second_look"})
    if _split_of(data["test"]) != _split_of(data["train"]):
        # no row of it could be trained on
        data = {key: value for key, value in data.items() if key != "test"}
    return data


def _fingerprints(recipe: Recipe, ranking: Sequence[str] | None) -> dict[str, str]:
    """Return for each node everything in the recipe that decides it, and what it merges."""
    data = recipe.data.model_dump(mode="json")
    rows = {
        key: value for key, value in data.items() if key not in ("train", "test", "calibration")
    }
    shared = [rows, recipe.evaluation.batch_size]
    calibration = [data["train"], data["calibration"], recipe.threads]
    trained_on = _decisive_data(recipe)
    known: dict[str, Any] = {name: _parent(recipe, name, trained_on) for name in recipe.usable}
    prints = {}
    ranked = (
        ranking
        if recipe.order == "accuracy" and set(ranking or ()) == set(recipe.parents)
        else None
    )
    for name, node in recipe.all_nodes(ranked).items():
        known[name] = [name, node.settings, [known[parent] for parent in node.parents], shared]
        known[name] += [calibration] if node.recalibrates else []
        prints[name] = json.dumps(known[name])
    return prints


def _parent(recipe: Recipe, name: str, data: dict[str, Any]) -> Any:
    parent, _, epoch = name.partition("@")
    reference = recipe.parents[parent]
    if parent not in recipe.trained:
        return reference if isinstance(reference, str) else reference.model_dump(mode="json")
    settings = recipe.trained[parent].train
    source = settings.source
    start = _parent(recipe, source, data) if source in recipe.usable else source
    return [
        settings.model_dump(mode="json", exclude={"checkpoints", "source"}),
        epoch,
        start,
        recipe.threads,
        data,
    ]


def _split_of(spec: str | None) -> str:
    """Return the split that a slice is of."""
    return (spec or "").partition("[")[0]
