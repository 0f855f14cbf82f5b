"""Intervals and paired tests on right and wrong answers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import bdtr, ndtri


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of an accuracy (Wilson, 1927), as two shares in [0, 1]."""
    z = float(ndtri((1 + confidence) / 2))
    p, whole = correct / n, 2 * (n + z**2)
    center = (2 * n * p + z**2) / whole
    half = z / whole * math.sqrt(4 * n * p * (1 - p) + z**2)
    return center - half if correct else 0.0, center + half if correct < n else 1.0


@dataclass(frozen=True)
class Paired:
    """McNemar's exact test of two models on the same rows (1947): only rows that one alone gets
    right count."""

    against: str
    only_merged_right: int
    only_other_right: int
    p: float  # two-sided; 1.0 where the models never differ
    low: float  # the bootstrap's 95 % interval of the difference in accuracy, merged less other
    high: float

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return asdict(self)


def mcnemar(against: str, merged: np.ndarray, other: np.ndarray) -> Paired:
    """Compare right ([n] bool) of the merged model with right of the model called `against`."""
    only_merged, only_other = int((merged & ~other).sum()), int((~merged & other).sum())
    low, high = bootstrap_interval(only_merged, only_other, len(merged))
    return Paired(against, only_merged, only_other, sign_test(only_merged, only_other), low, high)


def sign_test(ups: int, downs: int) -> float:
    """Return the two-sided p of so many differences in favour and against, were both equally
    likely; 1 for none."""
    return min(1.0, 2 * float(bdtr(min(ups, downs), ups + downs, 0.5)))


def bootstrap_interval(
    ups: int, downs: int, n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the paired bootstrap's percentile interval of a difference in accuracy (Efron and
    Tibshirani, 1993).

    Rows are drawn anew with their pairs of answers, and all that counts of a draw are its ups less
        its downs: so their
    distribution over all draws is known, by Fourier's transform of its characteristic function, and
    nothing is drawn.

    Args:
        ups: rows that the first model alone gets right.
        downs: rows that the second one alone gets right.
        n: all rows.
        confidence: of the interval.

    Returns:
        its ends, as shares of the rows in [-1, 1].
    """
    turn = np.exp(2j * np.pi * np.arange(2 * n + 1) / (2 * n + 1))
    spectrum = (ups / n * turn + downs / n / turn + (n - ups - downs) / n) ** n
    below = np.cumsum(np.roll(np.fft.fft(spectrum).real / (2 * n + 1), n))  # of -n, -n + 1, ..., n
    tail = (1 - confidence) / 2
    low, high = (int(np.searchsorted(below, share)) - n for share in (tail, 1 - tail))
    return low / n, high / n
