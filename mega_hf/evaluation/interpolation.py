"""Accuracy along the straight line between two models.

The models are evaluated as they are, recalibrated, aligned, or both. The largest fall below the
straight line between the ends' accuracies is the loss barrier (Frankle et al., 2020), here in
accuracy.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mega_hf.errors import ParentError
from mega_hf.evaluation.aligner import Aligner, reorder_channels
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
# Barriers, in percentage points: up to the first models interpolate well, beyond the second a
# search between them finds nothing.
_SMALL, _PASSABLE = 2.0, 20.0


@dataclass(frozen=True)
class Line:
    """Accuracy in percent at 11 points from the first model to the second.

    Attributes:
        rows: the number of rows evaluated.
        accuracy: plain, recalibrated, aligned, or both -> [11], where that could be done.
        skipped: why kinds are missing from `accuracy`; empty where none is.
    """

    rows: int
    accuracy: Mapping[str, list[float]]
    skipped: str

    def barrier(self, kind: str) -> float:
        """Return the largest fall below the straight line, in points; 0 or more."""
        accuracy = np.array(self.accuracy[kind])
        straight = np.linspace(accuracy[0], accuracy[-1], len(accuracy))
        return float(max(0.0, (straight - accuracy).max()))

    @property
    def advice(self) -> str:
        """One sentence on how to merge the two models."""
        barriers = {kind: self.barrier(kind) for kind in self.accuracy}
        shown = ", ".join(f"{kind} {barrier:.1f}" for kind, barrier in barriers.items())
        shown = f"largest fall of accuracy below the straight line, in points: {shown}"
        if barriers[PLAIN] <= _SMALL:
            return f"The models interpolate well ({shown}): average them, or search between them."
        if barriers.get(RECALIBRATED, np.inf) <= _SMALL:
            return f"With merge.batchnorm: recalibrate the models interpolate well ({shown})."
        kind, best = min(barriers.items(), key=lambda item: item[1])
        if kind in (ALIGNED, BOTH) and best <= _PASSABLE:
            also = " and merge.batchnorm: recalibrate" if kind == BOTH else ""
            return (
                f"Use merge.align: activations{also} ({shown}). The average is still worse than"
                " either model; a search near one of them may be better."
            )
        return (
            f"The models can't be averaged: every line passes through far worse models ({shown})."
            " They were trained independently, or for different tasks. Only mixtures close to one"
            " of them are useful."
        )

    def __str__(self) -> str:
        width = max(len(kind) for kind in self.accuracy)
        head = "  ".join(f"{point / (POINTS - 1):5.1f}" for point in range(POINTS))
        lines = [f"  {'':{width}}  {head}"]
        for kind, accuracy in self.accuracy.items():
            lines.append(f"  {kind:{width}}  " + "  ".join(f"{value:5.1f}" for value in accuracy))
        lines += [f"  {self.skipped}"] if self.skipped else []
        return "\n".join([*lines, f"  {self.advice}"])


def evaluate_line(
    inputs: MergeInputs, aligner: Aligner, examples: Examples, progress: Progress
) -> Line:
    """Evaluate the line between two models.

    Args:
        inputs: the two models.
        aligner: aligns the second model to the first; its calibration examples, if there are any,
            recalibrate BatchNorm.
        examples: what to evaluate on.
        progress: shows a bar.
    """
    states: dict[str, Mapping[str, StateDict]] = {PLAIN: inputs.states}
    skipped = []
    try:
        states[ALIGNED] = align_models(inputs, aligner)[0]
    except ParentError as error:
        skipped.append(f"not aligned: {error.what}")
    statistics = statistics_names(aligner.forward.model)
    if statistics and aligner.calibration is None:
        skipped.append("not recalibrated: the data set has no other rows for that")
    kinds = [(PLAIN, PLAIN, False), (ALIGNED, ALIGNED, False)]
    if statistics and aligner.calibration:
        kinds = [(PLAIN, PLAIN, False), (RECALIBRATED, PLAIN, True)]
        kinds += [(ALIGNED, ALIGNED, False), (BOTH, ALIGNED, True)]
    kinds = [kind for kind in kinds if kind[1] in states]
    accuracy: dict[str, list[float]] = {}
    with progress.bar("line", len(kinds) * POINTS, "models") as advance:
        for kind, source, recalibrates in kinds:
            mixing = mix_models(inputs, states[source], statistics if recalibrates else [])
            accuracy[kind] = []
            for share in (point / (POINTS - 1) for point in range(POINTS)):
                correct = count_correct(mixing, [1.0 - share, share], aligner, examples)
                accuracy[kind].append(100 * (correct or 0) / examples.count)
                advance(1, kind)
    return Line(examples.count, accuracy, "; ".join(skipped))


def evaluate_lines(
    pairs: list[tuple[str, str]],
    models: Mapping[str, LoadedModel],
    data: Data,
    split: str | None,
    sample: int,
    progress: bool,
) -> dict[tuple[str, str], Line]:
    """Evaluate the line between the two models of each pair.

    Args:
        pairs: of names.
        models: the models by name.
        data: the data set.
        split: the split to evaluate on; the validation split by default.
        sample: the largest number of rows to draw from it.
        progress: show bars.

    Raises:
        DataError: the data set can't be read, or has a class that a model lacks.
        ParentError: the models number the classes differently.
    """
    processes, first = Processes(), models[pairs[0][0]]
    rows, calibration_rows, names, classes = load_sample(data, split, sample)
    mappings = [
        match_classes(model.labels, model.num_classes, names, classes)[0]
        for model in models.values()
    ]
    if any(mapping != mappings[0] for mapping in mappings):
        raise ParentError(
            "these models number the classes differently",
            expected="one order of classes in all models",
            got="different orders",
            hint="give each model the data set's class names (label_names in config.json)",
        )
    size = choose_batch_size(None, len(rows), processes.device, first.model, first.input_shape)
    load = Loader(first, mappings[0], size, processes.device, memory_share=0.4)
    examples = load(rows)
    calibration = None
    if calibration_rows is not None:
        calibration = load.load_calibration(calibration_rows, threads=1)
    forward = ResidentModel(copy.deepcopy(first.model), processes.device)
    aligner = Aligner(forward, first.input_shape, calibration, processes)
    lines = {}
    for a, b in pairs:
        states = {name: models[name].view() for name in (a, b)}
        space = build_space(states, first.learned(), first.tied())
        # The digests of the contents are not used here.
        inputs = MergeInputs(models[a], space, states, contents=["", ""])
        lines[a, b] = evaluate_line(inputs, aligner, examples, Progress(progress))
    return lines


def mix_models(
    inputs: MergeInputs, states: Mapping[str, StateDict], recomputed: Collection[str]
) -> Mixing:
    """Return the encoding that mixes whole state dicts, one coefficient for each.

    Args:
        inputs: gives the layout.
        states: the state dicts by name.
        recomputed: BatchNorm statistics that are recalibrated, and so not mixed.
    """
    learned = [segment.name for segment in inputs.space.segments if segment.learned]
    space = build_space(dict(states), learned, inputs.space.tied, recomputed)
    # The digests of the contents are not used here.
    return Mixing(space, list(states.values()), "model", contents=list(states))


def count_correct(
    mixing: Mixing, shares: Sequence[float], aligner: Aligner, examples: Examples
) -> int | None:
    """Return a mixture's correct predictions; None where a logit is not finite.

    The mixture is recalibrated first if its statistics are not mixed.
    """
    forward, recomputed = aligner.forward, mixing.space.recomputed
    genome = torch.tensor(shares).repeat(len(mixing.bounds))
    forward.write(mixing.entries(genome), part=bool(recomputed))
    if recomputed and aligner.calibration:
        aligner.calibration.recalibrate(forward, recomputed)
    return forward.count_correct(examples)


def align_models(inputs: MergeInputs, aligner: Aligner) -> tuple[dict[str, StateDict], str]:
    """Align all models to the first one; call it on all processes.

    Returns:
        the state dicts in the first model's order of channels, and what was matched: "weights" or
        "activations".

    Raises:
        ParentError: the model can't be traced.
    """
    settings = Merge(align="activations" if aligner.calibration else "weights")
    aligned = dict(inputs.states)
    for name, found in aligner.find(settings, inputs).items():
        groups, orders = zip(*found, strict=True) if found else ((), ())
        aligned[name] = reorder_channels(inputs, inputs.states[name], groups, orders)
    return aligned, settings.align
