"""The parents of a merge brought into one order of channels: found once, kept in the journal, read from there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from mega_hf.errors import RunError
from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import Forward, logits
from mega_hf.evaluation.processes import Processes
from mega_hf.finalists import is_aligned
from mega_hf.inputs import Inputs, digest_without
from mega_hf.journal import NodeRecord
from mega_hf.settings import Merge, Node
from mega_hf.weights.alignment import activation_matching, check_orders, permute, weight_matching
from mega_hf.weights.space import StateDict
from mega_hf.weights.symmetry import Group, Place, Symmetry, find_symmetry

_BATCH = 32  # pictures, where activations are compared
_PICTURES = 512
_APART = 1e-3  # of the largest logit: what rounding in another order of sums may come to

Orders = list[tuple[Group, np.ndarray]]


@dataclass(frozen=True)
class Tracer:
    """What finds a merge's permutations where no journal knows them."""

    forward: Forward  # whose model's graph is read
    shape: tuple[int, ...]  # of a picture
    calibration: Calibration | None  # pictures for activations
    processes: Processes
    found: dict[str, dict[str, Orders]] = field(default_factory=dict)  # for merges of the same parents: not made again

    def recall(self, settings: Merge, opened: Inputs) -> dict[str, Orders]:
        """Return what `find` gives, or gave before for these parents."""
        key = json.dumps([settings.align, settings.align_to, settings.seed, list(opened.states), opened.contents])
        if key not in self.found:
            self.found[key] = self.find(settings, opened)
        return self.found[key]

    def find(self, settings: Merge, opened: Inputs) -> dict[str, Orders]:
        """Return for each parent but the reference how its channels are put beside that one's; on all processes.

        Raises:
            ParentError: the model can't be traced.
        """
        rows = min(_BATCH, self.calibration.pictures.count) if self.calibration else 2
        symmetry = find_symmetry(self.forward.model, self.shape, opened.first.structure["architecture"], rows)
        name, others = reference_of(settings, opened)
        reference = opened.states[name]
        sizes = [group.size for group in symmetry.groups]

        def match(i: int) -> list[int]:
            orders = self._match(settings, opened, symmetry, reference, opened.states[others[i]])
            return np.concatenate(orders).tolist()

        found = self.processes.share(len(others), sum(sizes), match)
        cuts = np.cumsum(sizes)[:-1]
        return {
            other: list(zip(symmetry.groups, np.split(row, cuts), strict=True))
            for other, row in zip(others, found, strict=True)
        }

    def _match(
        self, settings: Merge, opened: Inputs, symmetry: Symmetry, reference: StateDict, state: StateDict
    ) -> list[np.ndarray]:
        if settings.align == "weights":
            learned = [segment.name for segment in opened.space.segments if segment.learned]
            return weight_matching(symmetry.groups, reference, state, learned, settings.seed)
        assert self.calibration is not None, "its rows were looked for before"
        images = self.calibration.pictures.images[:_PICTURES].to(self.forward.device)
        return activation_matching(symmetry, reference, state, images)


def reference_of(settings: Merge, opened: Inputs) -> tuple[str, list[str]]:
    """Return the parent whose order of channels is kept, and those that are put beside it."""
    reference = settings.align_to or next(iter(opened.states))
    return reference, [name for name in opened.states if name != reference]


def align_inputs(settings: Merge, opened: Inputs, known: NodeRecord, tracer: Tracer) -> Inputs:
    """Return a merge's parents in one order of channels, the reference's; what is found is journaled before.

    Raises:
        ParentError: the model can't be traced.
        RunError: the journal's permutations do not fit these parents.
    """
    if settings.align == "none":
        return opened
    others = reference_of(settings, opened)[1]
    if not set(others) <= set(known.aligned):
        for parent, orders in tracer.recall(settings, opened).items():
            known.align(parent, [_line(group, order) for group, order in orders], write=tracer.processes.is_main)
    return aligned_inputs(settings, opened, known)


def move(opened: Inputs, state: StateDict, groups: Sequence[Group], orders: Sequence[np.ndarray]) -> StateDict:
    """Return a parent's state dict with its channels in another order, second names of tensors included."""
    moved = permute(state, groups, orders)
    return moved | {second: moved[first] for second, first in opened.space.tied.items()}


def aligned_inputs(settings: Merge, opened: Inputs, known: NodeRecord) -> Inputs:
    """Return a merge's parents with their channels moved as a journal says.

    Raises:
        RunError: it says something that does not fit them.
    """
    states, contents, moved = dict(opened.states), dict(zip(opened.states, opened.contents, strict=True)), set()
    for parent in reference_of(settings, opened)[1]:
        if parent not in known.aligned:
            raise _unfit(known, f"how {parent} was aligned", "nothing")
        groups, orders = zip(*map(_parse, known.aligned[parent]), strict=True) if known.aligned[parent] else ((), ())
        try:
            check_orders(groups, orders, states[parent])
        except ValueError as error:
            raise _unfit(known, f"permutations of {parent}'s channels", error) from None
        states[parent] = move(opened, states[parent], groups, orders)
        if any((order != np.arange(len(order))).any() for order in orders):
            moved.add(parent)
            contents[parent] = digest_without(states[parent], opened.space.recomputed)
    return replace(opened, states=states, contents=list(contents.values()), moved=frozenset(moved))


def alignment(root: Node, leaves: Iterable[str], known: NodeRecord) -> Callable[[Inputs], Inputs] | None:
    """Return what aligns the parents of the run as the final merge did, if that one aligned all of them."""
    return partial(aligned_inputs, root, known=known) if is_aligned(root, list(leaves)) else None


@torch.no_grad()
def check_function(model: nn.Module, before: Mapping[str, StateDict], after: Inputs, shape: tuple[int, ...]) -> None:
    """Raise RunError unless each parent answers as it did before its channels were moved.

    Args:
        model: of the architecture, on the CPU; its weights are overwritten.
        before: the parents' state dicts, by name.
        after: the parents as they are merged.
        shape: of a picture.
    """
    images = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    for name in after.moved:
        answers = []
        for state in (before[name], after.states[name]):
            model.load_state_dict({entry: tensor.float() for entry, tensor in state.items()}, strict=False)
            answers.append(logits(model, images))
        apart = float((answers[0] - answers[1]).abs().max() / answers[0].abs().max().clamp_min(1e-6))
        if not apart <= _APART:
            raise RunError(
                f"moving the channels of {name} changed what it computes", where="journal.jsonl",
                expected=f"logits up to {_APART:g} apart", got=f"{apart:.3g}", remedy="another copy of the run",
            )  # fmt: skip


def _line(group: Group, order: np.ndarray) -> dict[str, Any]:
    return {
        "size": group.size, "order": order.tolist(),
        "places": [[place.entry, place.dim, place.start, place.block] for place in group.places],
    }  # fmt: skip


def _parse(line: Mapping[str, Any]) -> tuple[Group, np.ndarray]:
    places = tuple(Place(*place) for place in line["places"])
    return Group(line["size"], places), np.array(line["order"], dtype=np.int64)


def _unfit(known: NodeRecord, expected: str, got: object) -> RunError:
    return RunError(
        f"{known.node} can't be aligned as its journal says", where=str(known.journal.path), expected=expected,
        got=got, remedy="the journal was changed: put a copy back; or --overwrite starts afresh",
    )  # fmt: skip


def check_alignable(nodes: Iterable[Merge], model: nn.Module, shape: tuple[int, ...], name: str) -> None:
    """Raise ParentError where a merge is to be aligned and its model can't be traced; before anything is made."""
    if any(node.align != "none" for node in nodes):
        find_symmetry(model, shape, name)
