"""Recalibrate BatchNorm statistics of the resident model on training examples."""

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
    """Calibration examples, and how to sum over them.

    The result is the same for any number of processes and threads: each process recalibrates the
    individuals that it evaluates by itself, sums run on the recipe's number of threads, and the
    batches depend on the model and the examples alone.
    """

    examples: Examples
    threads: int  # for sums
    digest: str  # of the rows

    @property
    def key(self) -> list[object]:
        """All that decides the statistics besides the weights, for a digest."""
        return [self.digest, self.threads, self.examples.batch_size]

    def recalibrate(self, forward: ResidentModel, dtypes: Mapping[str, torch.dtype]) -> StateDict:
        """Compute the statistics for the resident weights and write them into the model.

        Args:
            forward: the resident model; it runs uncompiled here.
            dtypes: statistic -> the parents' dtype, to which it is rounded.

        Returns:
            the statistics, rounded; on the CPU.
        """
        images = self.examples.images
        # Batches differ by one row at most, since they have equal weight in the average.
        parts = images.tensor_split(math.ceil(len(images) / self.examples.batch_size))
        batches = (
            part.to(forward.device).to(memory_format=forward.memory_format) for part in parts
        )
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            statistics = recalibrate_batchnorm(forward.model, forward.eager, batches, self.threads)
        rounded = {name: statistics[name].to(dtype) for name, dtype in dtypes.items()}
        forward.write(rounded.items(), part=True)
        return rounded
