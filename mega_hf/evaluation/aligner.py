"""Find and check the permutations that align the parents of a merge."""

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

# Of activation matching.
_BATCH_SIZE = 32
_EXAMPLES = 512
_TOLERANCE = 1e-3  # rounding of sums in another order, relative to the largest logit

# For each group of channels its order: [channels] int64, the old index of each new channel.
Orders = list[tuple[Group, np.ndarray]]


@dataclass(frozen=True)
class Aligner:
    """Finds the permutations of a merge that are not in the journal yet."""

    forward: ResidentModel  # its model's graph is traced
    shape: tuple[int, ...]  # of an image: (channels, height, width)
    calibration: Calibration | None  # examples whose activations are compared
    processes: Processes
    # by a digest of settings and parents, for several merges of the same parents
    cache: dict[str, dict[str, Orders]] = field(default_factory=dict)

    def find_cached(self, settings: Merge, inputs: MergeInputs) -> dict[str, Orders]:
        """Return what `find` returns, from the cache if possible."""
        key = json.dumps(
            [settings.align, settings.align_to, settings.seed, list(inputs.states), inputs.contents]
        )
        if key not in self.cache:
            self.cache[key] = self.find(settings, inputs)
        return self.cache[key]

    def find(self, settings: Merge, inputs: MergeInputs) -> dict[str, Orders]:
        """Match each parent's channels with the reference's; call on all processes.

        Returns:
            parent -> groups of channels and their orders, for all parents but the reference.

        Raises:
            ParentError: the model can't be traced.
        """
        rows = min(_BATCH_SIZE, self.calibration.examples.count) if self.calibration else 2
        symmetry = find_symmetry(
            self.forward.model, self.shape, inputs.first.structure["architecture"], rows
        )
        name, others = reference_and_others(settings, inputs)
        reference = inputs.states[name]
        sizes = [group.size for group in symmetry.groups]

        def match(i: int) -> list[int]:
            orders = self._match(settings, inputs, symmetry, reference, inputs.states[others[i]])
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
        inputs: MergeInputs,
        symmetry: Symmetry,
        reference: StateDict,
        state: StateDict,
    ) -> list[np.ndarray]:
        if settings.align == "weights":
            learned = [segment.name for segment in inputs.space.segments if segment.learned]
            return weight_matching(symmetry.groups, reference, state, learned, settings.seed)
        assert self.calibration is not None, "the recipe was checked for calibration rows"
        images = self.calibration.examples.images[:_EXAMPLES].to(self.forward.device)
        return activation_matching(symmetry, reference, state, images)


def reference_and_others(settings: Merge, inputs: MergeInputs) -> tuple[str, list[str]]:
    """Return the parent that is not reordered, and those that are aligned to it."""
    reference = settings.align_to or next(iter(inputs.states))
    return reference, [name for name in inputs.states if name != reference]


def reorder_channels(
    inputs: MergeInputs, state: StateDict, groups: Sequence[Group], orders: Sequence[np.ndarray]
) -> StateDict:
    """Return a parent's state dict with its channels reordered, tied tensors included."""
    moved = permute(state, groups, orders)
    return moved | {second: moved[first] for second, first in inputs.space.tied.items()}


@torch.no_grad()
def check_function(
    model: nn.Module, before: Mapping[str, StateDict], after: MergeInputs, shape: tuple[int, ...]
) -> None:
    """Check that each parent's logits are the same with reordered channels.

    Args:
        model: of the architecture, on the CPU; its weights are overwritten.
        before: the parents' state dicts, by name.
        after: the parents as they are merged.
        shape: of an image: (channels, height, width).

    Raises:
        RunError: the logits of a parent differ.
    """
    images = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    for name in after.moved:
        outputs = []
        for state in (before[name], after.states[name]):
            floats = {entry: tensor.float() for entry, tensor in state.items()}
            model.load_state_dict(floats, strict=False)
            outputs.append(logits(model, images))
        scale = outputs[0].abs().max().clamp_min(1e-6)
        error = float((outputs[0] - outputs[1]).abs().max() / scale)
        if not error <= _TOLERANCE:
            raise RunError(
                f"reordering the channels of {name} changed its output",
                where="journal.jsonl",
                expected=f"relative difference of logits up to {_TOLERANCE:g}",
                got=f"{error:.3g}",
                hint="use another copy of the run",
            )


def check_alignable(
    nodes: Iterable[Merge], model: nn.Module, shape: tuple[int, ...], name: str
) -> None:
    """Raise ParentError if a merge is to be aligned and its model can't be traced."""
    if any(node.align != "none" for node in nodes):
        find_symmetry(model, shape, name)
