"""Mixtures of models by one share of each, measured as they are, recalibrated, or with their channels aligned."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from mega_hf.aligning import Tracer, move
from mega_hf.evaluation.forward import Pictures
from mega_hf.inputs import Inputs
from mega_hf.settings import Merge
from mega_hf.weights.encoding import Mixing
from mega_hf.weights.space import StateDict, build_space


def mix_models(opened: Inputs, states: Mapping[str, StateDict], recomputed: Collection[str]) -> Mixing:
    """Return what mixes some state dicts of one architecture; statistics named `recomputed` are no part of it."""
    learned = [segment.name for segment in opened.space.segments if segment.learned]
    space = build_space(dict(states), learned, opened.space.tied, recomputed)
    return Mixing(space, list(states.values()), "model", contents=list(states))  # no digest of it is asked for


def count_right(mixing: Mixing, shares: Sequence[float], tracer: Tracer, pictures: Pictures) -> int | None:
    """Return a mixture's right answers; None where a logit is not finite. It is recalibrated if statistics are."""
    forward, recomputed = tracer.forward, mixing.space.recomputed
    forward.write(mixing.entries(torch.tensor(shares).repeat(len(mixing.bounds))), part=bool(recomputed))
    if recomputed and tracer.calibration:
        tracer.calibration.recalibrate(forward, recomputed)
    return forward.count(pictures)


def align_models(opened: Inputs, tracer: Tracer) -> tuple[dict[str, StateDict], str]:
    """Return state dicts in the first model's order of channels, and how they were matched; on all processes.

    Raises:
        ParentError: the model can't be traced.
    """
    how = Merge(align="activations" if tracer.calibration else "weights")
    aligned = dict(opened.states)
    for name, orders in tracer.find(how, opened).items():
        groups, found = zip(*orders, strict=True) if orders else ((), ())
        aligned[name] = move(opened, opened.states[name], groups, found)
    return aligned, how.align
