"""Check that parents can be merged: one layout, finite and different weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from mega_hf.errors import ParentError
from mega_hf.models.loaded import LoadedModel
from mega_hf.models.references import LoadedParent, ParentInfo
from mega_hf.weights.space import build_space, difference


def check_values(first: LoadedParent, other: LoadedParent) -> None:
    """Raise ParentError if weights are not finite, or buffers differ that can't be mixed."""
    states = {parent.parent.name: parent.model.view() for parent in (first, other)}
    build_space(states, first.model.learned(), {})


def check_distinct(parents: Iterable[ParentInfo]) -> None:
    """Raise ParentError if two parents have the same weights."""
    seen: dict[str, ParentInfo] = {}
    for parent in parents:
        twin = seen.setdefault(parent.sha256, parent)
        if twin is not parent:
            raise ParentError(
                f"{twin.name} and {parent.name} have the same weights",
                expected="independently trained models",
                got=f"digest {twin.sha256[:12]} twice",
                hint="list this model once",
            )


def check_layouts(models: dict[str, LoadedModel]) -> None:
    """Raise ParentError unless all models, by name, have one architecture, task and layout."""
    first = next(iter(models), "")
    for name in list(models)[1:]:
        problems = (
            disagreements(models[first], models[name]) if models[name] is not models[first] else []
        )
        if problems:
            what, expected, got = problems[0]
            raise ParentError(
                f"{first} and {name} can't be merged: different {what}",
                expected=f"{expected} ({first})",
                got=f"{got} ({name})",
                hint=f"mega-hf compare shows all differences ({len(problems)} found)",
            )


def disagreements(a: LoadedModel, b: LoadedModel) -> list[tuple[str, str, str]]:
    """Return (what, in a, in b) for every difference that prevents a merge of two models."""
    found = []
    pairs: list[tuple[str, Any, Any]] = [
        ("library", a.library, b.library),
        ("architecture", a.structure, b.structure),
        ("number of classes", a.num_classes, b.num_classes),
        ("classes or label order", a.labels, b.labels),
        ("preprocessing", a.preprocessing, b.preprocessing),
    ]
    for what, left, right in pairs:
        if left != right and not (what.startswith("classes") and (left is None or right is None)):
            found.append((what, *_show_difference(left, right)))
    if not (a.dtypes and b.dtypes):
        a, b = replace(a, dtypes={}), replace(b, dtypes={})  # unknown in one of them
    layout = list(difference(a.view(), b.view()))
    if layout:
        found.append(("shapes or dtypes", "identical entries", "; ".join(layout[:3])))
    return found


def _show_difference(a: Any, b: Any) -> tuple[str, str]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [k for k in [*a, *(k for k in b if k not in a)] if a.get(k) != b.get(k)]
        return str({k: a.get(k) for k in keys}), str({k: b.get(k) for k in keys})
    return str(a), str(b)
