"""What the search has learnt of the validation rows: which decide early, and who was measured
whole."""

from __future__ import annotations

import numpy as np

from mega_hf.search.population import Fitness

_FADING = 0.5  # what one generation's answers weigh beside those of the next
_LIMIT = 1 << 20  # of a margin
# of a row, in 2⁻¹⁶: 16 nats, as of a class that is given one part in nine million
MOST_LOSS = 1 << 20


class RowDifficulty:
    """Margins by which each row was answered, of late: rows with a small or negative one are asked
    first.

    Which row comes first decides only how soon a loser is known, never who wins.

    Args:
        rows: of the validation split.
    """

    def __init__(self, rows: int) -> None:
        self._margins = np.zeros(rows)  # sums, faded
        self._asked = np.zeros(rows)  # how often, faded alike
        # right answers, and the loss if it was summed
        self._whole: dict[str, tuple[int | None, int | None]] = {}

    def fade(self) -> None:
        """Let what was learnt so far weigh less than what will be: a generation is over."""
        self._margins *= _FADING
        self._asked *= _FADING

    def learn(self, rows: np.ndarray, margins: np.ndarray) -> None:
        """Take in the margins ([n] int64, as `quantize` made them) of some rows ([n] int64)."""
        self._margins[rows] += margins
        self._asked[rows] += 1

    def hardest(self, unseen: np.ndarray, count: int) -> np.ndarray:
        """Return up to `count` of the rows that are unseen ([rows] bool), the hardest first; of
        equals the first."""
        rows = np.flatnonzero(unseen)
        mean = self._margins[rows] / np.maximum(self._asked[rows], 1e-9)
        return rows[np.argsort(mean, kind="stable")[:count]]

    def keep(self, digest: str, correct: int | None, loss: int | None = None) -> None:
        """Remember right answers, on all rows, of a genome or state dict, by its digest; and the
        loss, if known."""
        if loss is not None or digest not in self._whole:
            self._whole[digest] = correct, loss

    def find(self, digest: str, needs_loss: bool = False) -> Fitness | None:
        """Return the fitness on all rows; None where it is not known, or its loss is needed and is
        not."""
        correct, loss = self._whole.get(digest, (None, None))
        if digest not in self._whole or (needs_loss and loss is None):
            return None
        return Fitness(correct, len(self._asked), loss=loss or 0)


def cache_key(sha256: str, is_recalibrated_run: bool) -> str:
    """Return by what the memory knows the count of a model: as it is, or with BatchNorm's
    statistics computed anew."""
    return f"{sha256} recalibrated" if is_recalibrated_run else sha256


def quantize(margins: np.ndarray) -> np.ndarray:
    """Return margins as integers, in 1/256: only integers cross processes. What is no number counts
    as wrong."""
    return np.clip(np.nan_to_num(256 * margins, nan=-_LIMIT), -_LIMIT, _LIMIT).astype(np.int64)


def quantize_losses(losses: np.ndarray) -> np.ndarray:
    """Return losses, in nats, as integers in 2⁻¹⁶ up to `MOST_LOSS`: their sums are exact in any
    order."""
    bounded = np.clip(
        np.nan_to_num(losses.astype(np.float64), nan=np.inf), 0, MOST_LOSS / (1 << 16)
    )
    return np.rint(bounded * (1 << 16)).astype(np.int64)
