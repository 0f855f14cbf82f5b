"""The parents of a merge brought into one order of channels: found once, kept in the journal, read
from there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from mega_hf.errors import RunError
from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import ResidentModel
from mega_hf.models.merge_inputs import MergeInputs
from mega_hf.recipe.merge import Merge
from mega_hf.runtime.processes import Processes
from mega_hf.tasks.image_classification import logits
from mega_hf.weights.matching import activation_matching, permute, weight_matching
from mega_hf.weights.space import StateDict
from mega_hf.weights.symmetry import Group, Symmetry, find_symmetry

_BATCH = 32  # pictures, where activations are compared
_PICTURES = 512
_APART = 1e-3  # of the largest logit: what rounding in another order of sums may come to

Orders = list[tuple[Group, np.ndarray]]


@dataclass(frozen=True)
class Aligner:
    """What finds a merge's permutations where no journal knows them."""

    forward: ResidentModel  # whose model's graph is read
    shape: tuple[int, ...]  # of a picture
    calibration: Calibration | None  # pictures for activations
    processes: Processes
    # for merges of the same parents: not made again
    found: dict[str, dict[str, Orders]] = field(default_factory=dict)

    def recall(self, settings: Merge, opened: MergeInputs) -> dict[str, Orders]:
        """Return what `find` gives, or gave before for these parents."""
        key = json.dumps(
            [settings.align, settings.align_to, settings.seed, list(opened.states), opened.contents]
        )
        if key not in self.found:
            self.found[key] = self.find(settings, opened)
        return self.found[key]

    def find(self, settings: Merge, opened: MergeInputs) -> dict[str, Orders]:
        """Return for each parent but the reference how its channels are put beside that one's; on
        all processes.

        Raises:
            ParentError: the model can't be traced.
        """
        rows = min(_BATCH, self.calibration.examples.count) if self.calibration else 2
        symmetry = find_symmetry(
            self.forward.model, self.shape, opened.first.structure["architecture"], rows
        )
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
        self,
        settings: Merge,
        opened: MergeInputs,
        symmetry: Symmetry,
        reference: StateDict,
        state: StateDict,
    ) -> list[np.ndarray]:
        if settings.align == "weights":
            learned = [segment.name for segment in opened.space.segments if segment.learned]
            return weight_matching(symmetry.groups, reference, state, learned, settings.seed)
        assert self.calibration is not None, "its rows were looked for before"
        images = self.calibration.examples.images[:_PICTURES].to(self.forward.device)
        return activation_matching(symmetry, reference, state, images)


def reference_of(settings: Merge, opened: MergeInputs) -> tuple[str, list[str]]:
    """Return the parent whose order of channels is kept, and those that are put beside it."""
    reference = settings.align_to or next(iter(opened.states))
    return reference, [name for name in opened.states if name != reference]


def move(
    opened: MergeInputs, state: StateDict, groups: Sequence[Group], orders: Sequence[np.ndarray]
) -> StateDict:
    """Return a parent's state dict with its channels in another order, second names of tensors
    included."""
    moved = permute(state, groups, orders)
    return moved | {second: moved[first] for second, first in opened.space.tied.items()}


@torch.no_grad()
def check_function(
    model: nn.Module, before: Mapping[str, StateDict], after: MergeInputs, shape: tuple[int, ...]
) -> None:
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
            model.load_state_dict(
                {entry: tensor.float() for entry, tensor in state.items()}, strict=False
            )
            answers.append(logits(model, images))
        apart = float(
            (answers[0] - answers[1]).abs().max() / answers[0].abs().max().clamp_min(1e-6)
        )
        if not apart <= _APART:
            raise RunError(
                f"moving the channels of {name} changed what it computes",
                where="journal.jsonl",
                expected=f"logits up to {_APART:g} apart",
                got=f"{apart:.3g}",
                hint="another copy of the run",
            )


def check_alignable(
    nodes: Iterable[Merge], model: nn.Module, shape: tuple[int, ...], name: str
) -> None:
    """Raise ParentError where a merge is to be aligned and its model can't be traced; before
    anything is made."""
    if any(node.align != "none" for node in nodes):
        find_symmetry(model, shape, name)
