"""Intervals and paired tests on right and wrong answers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import bdtr, ndtri  # scipy.stats takes a second more to load


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of an accuracy (Wilson, 1927), as two shares in [0, 1]."""
    z = float(ndtri((1 + confidence) / 2))
    p, whole = correct / n, 2 * (n + z**2)
    center = (2 * n * p + z**2) / whole
    half = z / whole * math.sqrt(4 * n * p * (1 - p) + z**2)
    return center - half if correct else 0.0, center + half if correct < n else 1.0


@dataclass(frozen=True)
class Paired:
    """McNemar's exact test of two models on the same rows (1947): only rows that one alone gets right count."""

    against: str
    only_merged_right: int
    only_other_right: int
    p: float  # two-sided; 1.0 where the models never differ

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return asdict(self)


def mcnemar(against: str, merged: np.ndarray, other: np.ndarray) -> Paired:
    """Compare right ([n] bool) of the merged model with right of the model called `against`."""
    only_merged, only_other = int((merged & ~other).sum()), int((~merged & other).sum())
    return Paired(against, only_merged, only_other, sign_test(only_merged, only_other))


def sign_test(ups: int, downs: int) -> float:
    """Return the two-sided p of so many differences in favour and against, were both equally likely; 1 for none."""
    return min(1.0, 2 * float(bdtr(min(ups, downs), ups + downs, 0.5)))
