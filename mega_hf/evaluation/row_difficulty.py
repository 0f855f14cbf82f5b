"""Difficulty of the validation rows, and the counts of known models."""

from __future__ import annotations

import numpy as np

from mega_hf.search.population import Fitness

_DECAY = 0.5  # weight of what was learned so far, applied after each generation
_MARGIN_LIMIT = 1 << 20  # of a quantized margin
# The largest loss of one row, in units of 2⁻¹⁶ nats: 16 nats, a probability of 1 in 9 million.
MAX_ROW_LOSS = 1 << 20


class RowDifficulty:
    """Recent margins on each row, to evaluate the hardest rows first.

    The order of rows only decides how soon a losing individual is stopped, never who wins.

    Args:
        rows: number of rows of the validation split.
    """

    def __init__(self, rows: int) -> None:
        self._margins = np.zeros(rows)  # decayed sums
        self._counts = np.zeros(rows)  # decayed numbers of margins in these sums

    def decay(self) -> None:
        """Halve the weight of all margins learned so far, at the end of a generation."""
        self._margins *= _DECAY
        self._counts *= _DECAY

    def learn(self, rows: np.ndarray, margins: np.ndarray) -> None:
        """Add an individual's quantized margins on some rows (both [n] int64)."""
        self._margins[rows] += margins
        self._counts[rows] += 1

    def hardest(self, unseen: np.ndarray, count: int) -> np.ndarray:
        """Return up to `count` of the unseen rows ([rows] bool), hardest first.

        Ties go to the lower row.
        """
        rows = np.flatnonzero(unseen)
        mean = self._margins[rows] / np.maximum(self._counts[rows], 1e-9)
        return rows[np.argsort(mean, kind="stable")[:count]]


class CountCache:
    """Fitness of models that were evaluated on all rows, by digest of weights.

    Args:
        rows: number of rows of the validation split.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        # key -> correct predictions, and the loss if it was summed
        self._counts: dict[str, tuple[int | None, int | None]] = {}

    @staticmethod
    def cache_key(sha256: str, is_recalibrated: bool) -> str:
        """Return the key of a model, as saved or with recalibrated BatchNorm statistics."""
        return f"{sha256} recalibrated" if is_recalibrated else sha256

    def keep(self, key: str, correct: int | None, loss: int | None = None) -> None:
        """Keep a model's correct predictions on all rows, and its loss if summed.

        Args:
            key: the digest of a genome, or the `cache_key` of a state dict.
            correct: correct predictions; None where a logit was not finite.
            loss: the sum over all rows in units of 2⁻¹⁶ nats; None where it was not summed.
        """
        if loss is not None or key not in self._counts:
            self._counts[key] = correct, loss

    def find(self, key: str, needs_loss: bool = False) -> Fitness | None:
        """Return the fitness under a key; None if it or a needed loss is missing."""
        correct, loss = self._counts.get(key, (None, None))
        if key not in self._counts or (needs_loss and loss is None):
            return None
        return Fitness(correct, self._rows, loss=loss or 0)


def quantize(margins: np.ndarray) -> np.ndarray:
    """Return margins as int64 in units of 1/256, since only integers cross processes.

    NaN becomes the lowest margin.
    """
    limited = np.nan_to_num(256 * margins, nan=-_MARGIN_LIMIT)
    return np.clip(limited, -_MARGIN_LIMIT, _MARGIN_LIMIT).astype(np.int64)


def quantize_losses(losses: np.ndarray) -> np.ndarray:
    """Return losses in nats as int64 in units of 2⁻¹⁶, at most `MAX_ROW_LOSS`.

    Sums of integers are exact in any order. NaN becomes the largest loss.
    """
    limit = MAX_ROW_LOSS / (1 << 16)
    bounded = np.clip(np.nan_to_num(losses.astype(np.float64), nan=np.inf), 0, limit)
    return np.rint(bounded * (1 << 16)).astype(np.int64)
