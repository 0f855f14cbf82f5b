"""The line between two models: how accuracy falls along it, as they are, recalibrated, aligned, and
both."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mega_hf.errors import ParentError
from mega_hf.evaluation.aligner import Aligner, move
from mega_hf.evaluation.batch_size import choose_batch_size
from mega_hf.evaluation.forward import Examples, ResidentModel
from mega_hf.evaluation.loader import Loader
from mega_hf.models.loaded import LoadedModel
from mega_hf.models.merge_inputs import MergeInputs
from mega_hf.recipe.data import Data
from mega_hf.recipe.merge import Merge
from mega_hf.runtime.processes import Processes
from mega_hf.runtime.progress import Progress
from mega_hf.tasks.image_classification import match_classes
from mega_hf.tasks.splits import load_sample
from mega_hf.weights.batchnorm import statistics_names
from mega_hf.weights.encoding import Mixing
from mega_hf.weights.space import StateDict, build_space

POINTS = 11
PLAIN, RECALIBRATED, ALIGNED, BOTH = "plain", "recalibrated", "aligned", "aligned and recalibrated"
# Points by which accuracy may fall below the straight line between the ends' accuracies.
_SMALL, _PASSABLE = 2.0, 20.0


@dataclass(frozen=True)
class Line:
    """Accuracy in per cent at 11 points from the first model to the second, for each way of
    treating them."""

    rows: int
    accuracy: Mapping[str, list[float]]  # the kind -> [11]
    without: str  # why a kind is not there, in words; empty where all are

    def barrier(self, kind: str) -> float:
        """Return by how many points accuracy falls at most below what lies straight between its
        ends; 0 or more."""
        found = np.array(self.accuracy[kind])
        straight = np.linspace(found[0], found[-1], len(found))
        return float(max(0.0, (straight - found).max()))

    @property
    def advice(self) -> str:
        """Say in one sentence what these two need."""
        barriers = {kind: self.barrier(kind) for kind in self.accuracy}
        shown = ", ".join(f"{kind} {barrier:.1f}" for kind, barrier in barriers.items())
        fallen = f"accuracy falls by at most so many points below the straight line: {shown}"
        if barriers[PLAIN] <= _SMALL:
            return f"They interpolate well ({fallen}): average them, or search between them."
        if barriers.get(RECALIBRATED, np.inf) <= _SMALL:
            return f"They need merge.batchnorm: recalibrate, and interpolate well then ({fallen})."
        kind, best = min(barriers.items(), key=lambda one: one[1])
        if kind in (ALIGNED, BOTH) and best <= _PASSABLE:
            also = " and merge.batchnorm: recalibrate" if kind == BOTH else ""
            return (
                f"They need merge.align: activations{also} ({fallen}); an average is still worse"
                " than they are, a search near them may not be."
            )
        return (
            "They can't be averaged: whatever was tried, the line leads through far worse models"
            f" ({fallen}). They were trained apart, or for something else; only what lies close to"
            " one of them is any good."
        )

    def __str__(self) -> str:
        width = max(len(kind) for kind in self.accuracy)
        head = "  ".join(f"{point / (POINTS - 1):5.1f}" for point in range(POINTS))
        lines = [f"  {'':{width}}  {head}"]
        for kind, found in self.accuracy.items():
            lines.append(f"  {kind:{width}}  " + "  ".join(f"{value:5.1f}" for value in found))
        lines += [f"  {self.without}"] if self.without else []
        return "\n".join([*lines, f"  {self.advice}"])


def draw_line(opened: MergeInputs, tracer: Aligner, examples: Examples, progress: Progress) -> Line:
    """Measure the line between two models.

    Args:
        opened: both.
        tracer: aligns the second to the first; its calibration pictures, if there are any,
            recalibrate.
        examples: what is measured on.
        progress: shows how far it is.
    """
    forward, without = tracer.forward, ""
    states: dict[str, Mapping[str, StateDict]] = {PLAIN: opened.states}
    try:
        states[ALIGNED] = align_models(opened, tracer)[0]
    except ParentError as error:
        without = f"not aligned: {error.what}"
    has_statistics = bool(statistics_names(forward.model))
    if has_statistics and tracer.calibration is None:
        without = "; ".join(
            filter(None, [without, "not recalibrated: the data set has no other rows to do it on"])
        )
    kinds = [
        (PLAIN, PLAIN, False),
        (RECALIBRATED, PLAIN, True),
        (ALIGNED, ALIGNED, False),
        (BOTH, ALIGNED, True),
    ]
    kinds = [
        one
        for one in kinds
        if one[1] in states and (not one[2] or (has_statistics and tracer.calibration))
    ]
    found: dict[str, list[float]] = {}
    with progress.bar("line", len(kinds) * POINTS, "models") as advance:
        for kind, of, recalibrates in kinds:
            mixing = mix_models(
                opened, states[of], statistics_names(forward.model) if recalibrates else []
            )
            found[kind] = []
            for share in (point / (POINTS - 1) for point in range(POINTS)):
                right = count_right(mixing, [1.0 - share, share], tracer, examples)
                found[kind].append(100 * (right or 0) / examples.count)
                advance(1, kind)
    return Line(examples.count, found, without)


def draw_lines(
    pairs: list[tuple[str, str]],
    opened: Mapping[str, LoadedModel],
    data: Data,
    split: str | None,
    sample: int,
    progress: bool,
) -> dict[tuple[str, str], Line]:
    """Measure the line between each two of some models.

    Args:
        pairs: of names.
        opened: the models by name.
        data: the data set.
        split: what of it to measure on; its validation split by default.
        sample: so many rows of that, at most.
        progress: show bars.

    Raises:
        DataError: the data set can't be read, or has a class that a model lacks.
        ParentError: the models number its classes otherwise.
    """
    processes, first = Processes(), opened[pairs[0][0]]
    rows, calibration, names, classes = load_sample(data, split, sample)
    mapping = [
        match_classes(one.labels, one.num_classes, names, classes)[0] for one in opened.values()
    ]
    if any(found != mapping[0] for found in mapping):
        raise ParentError(
            "these models number the classes otherwise",
            expected="the data set's class names in all",
            got="others",
            hint="give them the class names of the data set (label_names in config.json)",
        )
    size = choose_batch_size(None, len(rows), processes.device, first.model, first.input_shape)
    load = Loader(first, mapping[0], size, processes.device, memory_share=0.4)
    examples = load(rows)
    shown = load.calibrate(calibration, threads=1) if calibration is not None else None
    forward = ResidentModel(copy.deepcopy(first.model), processes.device)
    tracer = Aligner(forward, first.input_shape, shown, processes)
    lines = {}
    for one, other in pairs:
        states = {name: opened[name].view() for name in (one, other)}
        space = build_space(states, first.learned(), first.tied())
        # no digest of it is asked for
        inputs = MergeInputs(opened[one], space, states, contents=["", ""])
        lines[one, other] = draw_line(inputs, tracer, examples, Progress(progress))
    return lines


def mix_models(
    opened: MergeInputs, states: Mapping[str, StateDict], recomputed: Collection[str]
) -> Mixing:
    """Return what mixes some state dicts of one architecture; statistics named `recomputed` are no
    part of it."""
    learned = [segment.name for segment in opened.space.segments if segment.learned]
    space = build_space(dict(states), learned, opened.space.tied, recomputed)
    # no digest of it is asked for
    return Mixing(space, list(states.values()), "model", contents=list(states))


def count_right(
    mixing: Mixing, shares: Sequence[float], tracer: Aligner, examples: Examples
) -> int | None:
    """Return a mixture's right answers; None where a logit is not finite. It is recalibrated if
    statistics are."""
    forward, recomputed = tracer.forward, mixing.space.recomputed
    forward.write(
        mixing.entries(torch.tensor(shares).repeat(len(mixing.bounds))), part=bool(recomputed)
    )
    if recomputed and tracer.calibration:
        tracer.calibration.recalibrate(forward, recomputed)
    return forward.count(examples)


def align_models(opened: MergeInputs, tracer: Aligner) -> tuple[dict[str, StateDict], str]:
    """Return state dicts in the first model's order of channels, and how they were matched; on all
    processes.

    Raises:
        ParentError: the model can't be traced.
    """
    how = Merge(align="activations" if tracer.calibration else "weights")
    aligned = dict(opened.states)
    for name, orders in tracer.find(how, opened).items():
        groups, found = zip(*orders, strict=True) if orders else ((), ())
        aligned[name] = move(opened, opened.states[name], groups, found)
    return aligned, how.align
