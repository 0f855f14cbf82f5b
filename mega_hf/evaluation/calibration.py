"""Training pictures from which BatchNorm's statistics follow, for whatever weights are resident."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mega_hf.evaluation.forward import Examples, ResidentModel
from mega_hf.weights.batchnorm import recalibrate_batchnorm
from mega_hf.weights.space import StateDict


@dataclass(frozen=True)
class Calibration:
    """Pictures of the training split, and the threads that sum over them.

    One result is promised for any number of processes and threads, so each process recalibrates
    whatever it measures,
    by itself: the sums run on the recipe's `threads`, in batches that depend on model and pictures
        alone.
    """

    examples: Examples
    threads: int
    digest: str  # of the rows

    @property
    def key(self) -> list[object]:
        """What decides the statistics beside the weights."""
        return [self.digest, self.threads, self.examples.batch_size]

    def recalibrate(self, forward: ResidentModel, dtypes: Mapping[str, torch.dtype]) -> StateDict:
        """Compute the statistics of the weights that are resident, and write them into the resident
        model.

        Args:
            forward: the resident model; it runs uncompiled for this.
            dtypes: to which each entry is rounded, the parents' own.

        Returns:
            the entries as they are stored.
        """
        whole, size = self.examples.images, self.examples.batch_size
        # of equal size, give or take a row
        parts = whole.tensor_split(math.ceil(len(whole) / size))
        batches = (
            part.to(forward.device).to(memory_format=forward.memory_format) for part in parts
        )
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            made = recalibrate_batchnorm(forward.model, forward.eager, batches, self.threads)
        rounded = {name: made[name].to(dtype) for name, dtype in dtypes.items()}
        forward.write(rounded.items(), part=True)
        return rounded
