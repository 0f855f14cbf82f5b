"""Align the parents of a merge, with permutations that are recorded in the journal first."""

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
    settings: Merge, inputs: MergeInputs, known: NodeRecord, aligner: Aligner
) -> MergeInputs:
    """Return the parents of a merge with their channels in the order of the reference parent.

    Permutations that the journal does not have are found now, and recorded before they are used.

    Raises:
        ParentError: the model can't be traced.
        RunError: the journal's permutations do not fit these parents.
    """
    if settings.align == "none":
        return inputs
    others = reference_and_others(settings, inputs)[1]
    if not set(others) <= set(known.aligned):
        for parent, orders in aligner.find_cached(settings, inputs).items():
            known.align(
                parent,
                [_line(group, order) for group, order in orders],
                write=aligner.processes.is_main,
            )
    return aligned_inputs(settings, inputs, known)


def aligned_inputs(settings: Merge, inputs: MergeInputs, known: NodeRecord) -> MergeInputs:
    """Return the parents of a merge with their channels permuted as the journal says.

    Raises:
        RunError: the journal's permutations are missing, or do not fit these parents.
    """
    states = dict(inputs.states)
    contents = dict(zip(inputs.states, inputs.contents, strict=True))
    moved = set()
    for parent in reference_and_others(settings, inputs)[1]:
        if parent not in known.aligned:
            raise _misfit(known, f"permutations of {parent}'s channels", "none")
        groups, orders = (
            zip(*map(_parse, known.aligned[parent]), strict=True)
            if known.aligned[parent]
            else ((), ())
        )
        try:
            check_orders(groups, orders, states[parent])
        except ValueError as error:
            raise _misfit(known, f"permutations of {parent}'s channels", error) from None
        states[parent] = reorder_channels(inputs, states[parent], groups, orders)
        if any((order != np.arange(len(order))).any() for order in orders):
            moved.add(parent)
            contents[parent] = digest_without(states[parent], inputs.space.recomputed)
    return replace(inputs, states=states, contents=list(contents.values()), moved=frozenset(moved))


def alignment(
    root: Node, leaves: Iterable[str], known: NodeRecord
) -> Callable[[MergeInputs], MergeInputs] | None:
    """Return a function that aligns all parents as the final merge did; None if it did not."""
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


def _misfit(known: NodeRecord, expected: str, got: object) -> RunError:
    return RunError(
        f"{known.node} can't be aligned as recorded in the journal",
        where=str(known.journal.path),
        expected=expected,
        got=got,
        hint="the journal was changed: restore it from a copy, or use --overwrite to start again",
    )
