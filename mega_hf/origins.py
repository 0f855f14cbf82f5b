"""Where result.json says that parents and data came from, held against recipe.yaml, and what it says of the order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mega_hf.absent import is_absent, is_placeholder, places
from mega_hf.candidates import tolerance, treated
from mega_hf.errors import VerificationError
from mega_hf.hf.parents import origin_of
from mega_hf.recipe_checks import is_local
from mega_hf.result import NAME as RESULT
from mega_hf.testimony import Testimony, changed
from mega_hf.tree import base

_BESIDE = {"name", "sha256", "license", "license_name", "license_link"}


def compare_origins(told: Testimony) -> None:
    """See that result.json gives parents and data the origin that recipe.yaml gives them.

    Raises:
        VerificationError: it gives another one.
    """
    parents = told.result.record["parents"]
    names, leaves = [parent["name"] for parent in parents], told.recipe.leaves(None)
    if sorted(names) != sorted(leaves):
        raise changed(RESULT, "its parents", ", ".join(leaves), ", ".join(names))
    for parent in parents:
        given = {key: value for key, value in parent.items() if key not in _BESIDE}
        expected = origin_of(parent["name"], told.recipe.parents[base(parent["name"])])
        if given != expected:
            raise changed(RESULT, f"where the parent {parent['name']} came from", expected, given)
    wanted, data = told.recipe.data, told.result.record["data"]
    source: dict[str, Any] = {"hub": wanted.path, "revision": wanted.revision}
    if is_local(wanted.path) or is_absent(wanted.path):
        source = origin_of("data", wanted.path)
    if data["source"] != source:
        raise changed(RESULT, "where the data came from", source, data["source"])
    for split in told.splits:
        said = wanted.text_of(split, data[split]["rows"])
        if data[split]["spec"] != said:
            raise changed(RESULT, f"what the {split} rows are", said, data[split]["spec"])
    _compare_placeholders(told)


def _compare_placeholders(told: Testimony) -> None:
    """What stands in a recipe for something local names its content: that of the parents and rows of this run."""
    ours, data = told.recipe.to_dict(), told.result.record["data"]
    known: dict[str, Any] = {"data.path": {split: data[split]["sha256"] for split in told.splits}}
    for name, sha256 in told.parents.items():
        known |= {f"parents.{name}": sha256, f"parents.{name}.weights": sha256}
    here = {key: inner[key[-1]] for key, inner in places(ours)}
    for where, tree in (("recipe.yaml", ours), (RESULT, told.result.record["recipe"])):
        for key, value in _placeholders(tree):
            name, content = ".".join(key), value.get("sha256")
            if content is not None and content != known.get(name, content):
                raise changed(where, f"the content of {name}", known[name], content)
            written: Any = here.get(key)
            local = written["local"] if is_placeholder(written) else Path(str(written)).name
            if value["local"] != local:
                raise changed(where, f"what {name} was called", local, value["local"])


def _placeholders(tree: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    return ((key, inner[key[-1]]) for key, inner in places(tree) if is_placeholder(inner[key[-1]]))


def compare_order(told: Testimony) -> None:
    """See that `order: accuracy` took the parents in the order of the accuracies that the run recorded.

    Raises:
        VerificationError: it did not.
    """
    if told.recipe.order != "accuracy":
        return
    names, order = list(told.recipe.parents), told.journal.order
    if order is None or sorted(order["ranking"]) != sorted(names) or order["correct"].keys() != set(names):
        raise VerificationError(
            "it does not rank the parents", where="journal.jsonl", expected=", ".join(names),
            got=order and order["ranking"], remedy="another copy of the run",
        )  # fmt: skip
    ranking = sorted(names, key=lambda name: -order["correct"][name])
    if ranking != order["ranking"]:
        raise changed("journal.jsonl", "the parents' order", ranking, order["ranking"])
    as_listed = {treated(name): name for name in names} if told.is_treated else {name: name for name in names}
    for model in told.result.report.models:
        counted = order["correct"].get(as_listed.get(model["name"]))
        if counted is not None and abs(max(counted, 0) - model["validation"]["correct"]) > tolerance(told.rows):
            raise changed(RESULT, f"{model['name']} on validation", counted, model["validation"]["correct"])
