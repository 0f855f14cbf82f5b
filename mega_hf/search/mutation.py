"""Gaussian mutation of the learned weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mega_hf.search.population import Genes

# Draws made at once: 8 MiB of float64. The size decides the random numbers, so it never changes.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Gaussian:
    """Settings of the noise N(0, std²), added to a weight with probability `rate`.

    Attributes:
        rate: the paper's p_mut.
        std: the paper's σ. The paper gives no value; its published code has 0.1, absolute.
        scope: `element` decides for each weight (the paper's text), `tensor` once for a whole
            tensor (the published code).
        relative: whether `std` is in units of the tensor's spread.
        statistics: whether to mutate BatchNorm statistics too, as the published code does.
    """

    rate: float
    std: float
    scope: Literal["element", "tensor"] = "element"
    relative: bool = True
    statistics: bool = False


def mutate(
    genome: torch.Tensor, genes: Genes, settings: Gaussian, stream: np.random.Generator
) -> None:
    """Add noise to `genome` ([size] float32 on the CPU) in place."""
    values = genome.numpy()
    tensors = len(genes.bounds) if settings.statistics else genes.learned
    for (start, stop), scale in zip(genes.bounds[:tensors], genes.scales[:tensors], strict=True):
        std = settings.std * scale if settings.relative else settings.std
        for block in range(start, stop, _BLOCK):
            end = min(block + _BLOCK, stop)
            if settings.scope == "tensor":
                if block == start:
                    chosen = stream.random() < settings.rate
                hit = np.arange(end - block) if chosen else np.empty(0, dtype=np.int64)
            else:
                hit = np.flatnonzero(stream.random(end - block) < settings.rate)
            noise = stream.standard_normal(len(hit)) * std
            values[block + hit] += noise.astype(np.float32)


def spread(tensors: list[np.ndarray]) -> float:
    """Return a tensor's spread over the parents: the mean of its standard deviations.

    A tensor with one element has no standard deviation; its absolute value is used instead. Sums
    run over the elements in order and in float64, so that every machine gets the same bits:
    numpy's own sum groups elements by the processor's vector width.

    Args:
        tensors: the tensor of each parent, float32 of any shape.
    """
    return _ordered_sum(np.array([_spread(t) for t in tensors])) / len(tensors)


def _spread(tensor: np.ndarray) -> float:
    values = tensor.reshape(-1).astype(np.float64)
    if values.size == 1:
        return float(abs(values[0]))
    deviations = values - _ordered_sum(values) / values.size
    return float(np.sqrt(_ordered_sum(deviations * deviations) / values.size))


def _ordered_sum(values: np.ndarray) -> float:
    return float(np.cumsum(values)[-1])
