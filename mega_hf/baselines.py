"""What a merge is shown against. A baseline is one function from the parents to weights, and a line in BASELINES."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mega_hf.genetic.crossover import mix

Baseline = Callable[[torch.Tensor], torch.Tensor]


def uniform_soup(parents: torch.Tensor) -> torch.Tensor:
    """Average the parents with equal weights (Wortsman et al., 2022): [parents, size] to [size], float32.

    Each number by itself, so that any part of the weights will do.
    """
    return mix(list(parents), [1 / len(parents)] * len(parents), out=torch.empty(parents.shape[1]))


ALIGNED = "aligned_soup"  # the parents' average, their channels in one order as in the final merge

BASELINES: dict[str, Baseline] = {"uniform_soup": uniform_soup}
