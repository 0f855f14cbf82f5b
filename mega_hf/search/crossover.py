"""Mix vectors, for founders and children, with the same rounding on every machine."""

from __future__ import annotations

import numpy as np
import torch


def spacings(stream: np.random.Generator, parents: int) -> list[float]:
    """Draw weights uniformly from the simplex.

    The weights are the gaps between `parents` - 1 sorted uniform numbers. With two parents they are
    (α, 1 - α), α ~ U(0, 1), as in the paper's equation for the founders.
    """
    cuts = np.sort(stream.random(parents - 1))
    return np.diff(cuts, prepend=0.0, append=1.0).tolist()


def mix(vectors: list[torch.Tensor], weights: list[float], out: torch.Tensor) -> torch.Tensor:
    """Write Σ wᵢ vᵢ into `out` and return it.

    Multiplications and additions are separate calls, so that no machine fuses them into one
    rounding.

    Args:
        vectors: [size] float32 each.
        weights: one for each vector.
        out: [size] float32; not one of the vectors.
    """
    torch.mul(vectors[0], _float32(weights[0]), out=out)
    for vector, weight in zip(vectors[1:], weights[1:], strict=True):
        out.add_(torch.mul(vector, _float32(weight)))
    return out


def equal_weights(count: int) -> list[float]:
    """Return the mixing weights of a uniform soup (Wortsman et al., 2022)."""
    return [1 / count] * count


def average(vectors: list[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
    """Write the mean of the vectors into `out` ([size] float32, none of the vectors)."""
    return mix(vectors, equal_weights(len(vectors)), out)


def blend(a: torch.Tensor, b: torch.Tensor, beta: float, out: torch.Tensor) -> torch.Tensor:
    """Write β a + (1 - β) b into `out`, the paper's crossover.

    Where both mates are the same individual, it is copied.
    """
    return out.copy_(a) if a is b else mix([a, b], [beta, 1.0 - beta], out)


def _float32(weight: float) -> float:
    return float(np.float32(weight))
