"""Align a merge's parents as its journal says; what is found is journaled first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from mega_hf.errors import RunError
from mega_hf.evaluation.aligner import Aligner, reference_and_others, reorder_channels
from mega_hf.models.merge_inputs import MergeInputs, digest_without
from mega_hf.recipe.baselines import is_aligned
from mega_hf.recipe.merge import Merge, Node
from mega_hf.run.journal import NodeRecord
from mega_hf.weights.matching import check_orders
from mega_hf.weights.symmetry import Group, Place


def align_inputs(
    settings: Merge, opened: MergeInputs, known: NodeRecord, tracer: Aligner
) -> MergeInputs:
    """Return a merge's parents in one order of channels, the reference's; what is found is
    journaled before.

    Raises:
        ParentError: the model can't be traced.
        RunError: the journal's permutations do not fit these parents.
    """
    if settings.align == "none":
        return opened
    others = reference_and_others(settings, opened)[1]
    if not set(others) <= set(known.aligned):
        for parent, orders in tracer.find_cached(settings, opened).items():
            known.align(
                parent,
                [_line(group, order) for group, order in orders],
                write=tracer.processes.is_main,
            )
    return aligned_inputs(settings, opened, known)


def aligned_inputs(settings: Merge, opened: MergeInputs, known: NodeRecord) -> MergeInputs:
    """Return a merge's parents with their channels moved as a journal says.

    Raises:
        RunError: it says something that does not fit them.
    """
    states = dict(opened.states)
    contents = dict(zip(opened.states, opened.contents, strict=True))
    moved = set()
    for parent in reference_and_others(settings, opened)[1]:
        if parent not in known.aligned:
            raise _unfit(known, f"how {parent} was aligned", "nothing")
        groups, orders = (
            zip(*map(_parse, known.aligned[parent]), strict=True)
            if known.aligned[parent]
            else ((), ())
        )
        try:
            check_orders(groups, orders, states[parent])
        except ValueError as error:
            raise _unfit(known, f"permutations of {parent}'s channels", error) from None
        states[parent] = reorder_channels(opened, states[parent], groups, orders)
        if any((order != np.arange(len(order))).any() for order in orders):
            moved.add(parent)
            contents[parent] = digest_without(states[parent], opened.space.recomputed)
    return replace(opened, states=states, contents=list(contents.values()), moved=frozenset(moved))


def alignment(
    root: Node, leaves: Iterable[str], known: NodeRecord
) -> Callable[[MergeInputs], MergeInputs] | None:
    """Return what aligns the parents of the run as the final merge did, if that one aligned all of
    them."""
    return partial(aligned_inputs, root, known=known) if is_aligned(root, list(leaves)) else None


def _line(group: Group, order: np.ndarray) -> dict[str, Any]:
    return {
        "size": group.size,
        "order": order.tolist(),
        "places": [[place.entry, place.dim, place.start, place.block] for place in group.places],
    }


def _parse(line: Mapping[str, Any]) -> tuple[Group, np.ndarray]:
    places = tuple(Place(*place) for place in line["places"])
    return Group(line["size"], places), np.array(line["order"], dtype=np.int64)


def _unfit(known: NodeRecord, expected: str, got: object) -> RunError:
    return RunError(
        f"{known.node} can't be aligned as its journal says",
        where=str(known.journal.path),
        expected=expected,
        got=got,
        hint="the journal was changed: put a copy back; or --overwrite starts afresh",
    )
