"""Splits as pictures that are ready to use: decoded and transformed once, in the one batch shape of
a run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mega_hf.evaluation.batch_size import even_batches, suitable
from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import Examples, place_examples
from mega_hf.models.loaded import LoadedModel
from mega_hf.tasks.rows import Split, load_examples
from mega_hf.tasks.splits import Splits


@dataclass(frozen=True)
class Loader:
    """Loads splits for one kind of model."""

    model: LoadedModel
    mapping: list[int]  # for each class of the data set the model's output
    batch_size: int
    device: torch.device
    memory_share: float  # of what is free, for one split's pictures

    def __call__(self, split: Split) -> Examples:
        """Decode and transform a split."""
        shape = self.model.input_shape
        examples = place_examples(
            len(split), shape, self.batch_size, self.device, self.memory_share
        )
        load_examples(split, self.mapping, self.model.transform, examples.images, examples.labels)
        return examples

    def calibration(self, splits: Splits, threads: int) -> Calibration | None:
        """Load the pictures on which merges are recalibrated; None where none is, or can be."""
        digest = splits.digests.get("calibration")
        if digest is None:
            return None
        assert splits.calibration is not None, "its digest is known"
        return self.calibrate(splits.calibration, threads, digest)

    def calibrate(self, split: Split, threads: int, digest: str = "") -> Calibration:
        """Load the pictures of a split as those from which statistics follow."""
        # By the model alone: statistics depend on it, and must be the same on another kind of
        # device.
        rows = even_batches(len(split), suitable(self.model.model, self.model.input_shape))
        return Calibration(replace(self, batch_size=rows)(split), threads, digest)
