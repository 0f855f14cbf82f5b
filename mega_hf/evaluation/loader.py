"""Load splits as examples: decoded and transformed once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mega_hf.evaluation.batch_size import even_batches, suitable_batch_size
from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import Examples, place_examples
from mega_hf.models.loaded import LoadedModel
from mega_hf.tasks.rows import Split, load_examples
from mega_hf.tasks.splits import Splits


@dataclass(frozen=True)
class Loader:
    """Loads splits for one kind of model."""

    model: LoadedModel
    mapping: list[int]  # the model's output for each class of the data set
    batch_size: int
    device: torch.device
    memory_share: float  # the part of the free memory that one split may take

    def __call__(self, split: Split) -> Examples:
        """Decode and transform a split."""
        shape = self.model.input_shape
        examples = place_examples(
            len(split), shape, self.batch_size, self.device, self.memory_share
        )
        load_examples(split, self.mapping, self.model.transform, examples.images, examples.labels)
        return examples

    def calibration(self, splits: Splits, threads: int) -> Calibration | None:
        """Load the calibration split; None where the run has none."""
        digest = splits.digests.get("calibration")
        if digest is None:
            return None
        assert splits.calibration is not None, "its digest is known"
        return self.load_calibration(splits.calibration, threads, digest)

    def load_calibration(self, split: Split, threads: int, digest: str = "") -> Calibration:
        """Load a split to recalibrate BatchNorm on; `digest` is that of its rows."""
        # The statistics depend on the batch size, so it depends on the model alone: the same
        # statistics on every kind of device.
        rows = even_batches(
            len(split), suitable_batch_size(self.model.model, self.model.input_shape)
        )
        return Calibration(replace(self, batch_size=rows)(split), threads, digest)
