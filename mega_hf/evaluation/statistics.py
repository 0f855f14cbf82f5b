"""Confidence intervals and paired tests for the accuracy of models."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import bdtr, ndtri


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval (Wilson, 1927) of an accuracy, in [0, 1]."""
    z = float(ndtri((1 + confidence) / 2))
    p, whole = correct / n, 2 * (n + z**2)
    center = (2 * n * p + z**2) / whole
    half = z / whole * math.sqrt(4 * n * p * (1 - p) + z**2)
    return center - half if correct else 0.0, center + half if correct < n else 1.0


@dataclass(frozen=True)
class Paired:
    """McNemar's exact test (1947) of two models on the same rows.

    Only rows that exactly one of the models predicts correctly count.
    """

    against: str
    only_merged_right: int
    only_other_right: int
    p: float  # two-sided; 1.0 where the models never differ
    low: float  # bootstrap 95 % interval of the difference in accuracy, merged minus other
    high: float

    def to_dict(self) -> dict[str, Any]:
        """Return the test as plain values."""
        return asdict(self)


def mcnemar(against: str, merged: np.ndarray, other: np.ndarray) -> Paired:
    """Compare the merged model with another one, by their correct rows.

    Args:
        against: the name of the other model.
        merged: [n] bool, rows that the merged model predicts correctly.
        other: [n] bool, rows that the other model predicts correctly.
    """
    only_merged, only_other = int((merged & ~other).sum()), int((~merged & other).sum())
    low, high = bootstrap_interval(only_merged, only_other, len(merged))
    return Paired(against, only_merged, only_other, sign_test(only_merged, only_other), low, high)


def sign_test(ups: int, downs: int) -> float:
    """Return the two-sided p-value of an exact sign test; 1 for no differences."""
    return min(1.0, 2 * float(bdtr(min(ups, downs), ups + downs, 0.5)))


def bootstrap_interval(
    ups: int, downs: int, n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the paired bootstrap percentile interval (Efron and Tibshirani, 1993).

    A bootstrap sample draws n rows with replacement, and its difference in accuracy is its number
    of ups minus its number of downs, divided by n. The distribution of that difference over all
    samples is computed exactly, as the inverse Fourier transform of its characteristic function,
    so nothing is drawn at random.

    Args:
        ups: rows that only the first model predicts correctly.
        downs: rows that only the second model predicts correctly.
        n: the number of rows.
        confidence: of the interval.

    Returns:
        the ends of the interval of the difference in accuracy, in [-1, 1].
    """
    turn = np.exp(2j * np.pi * np.arange(2 * n + 1) / (2 * n + 1))
    spectrum = (ups / n * turn + downs / n / turn + (n - ups - downs) / n) ** n
    below = np.cumsum(np.roll(np.fft.fft(spectrum).real / (2 * n + 1), n))  # of -n, -n + 1, ..., n
    tail = (1 - confidence) / 2
    low, high = (int(np.searchsorted(below, share)) - n for share in (tail, 1 - tail))
    return low / n, high / n
