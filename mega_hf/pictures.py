"""Splits as pictures that are ready to use: decoded and transformed once, in the one batch shape of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mega_hf.evaluation.batches import even_batches, suitable
from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import Pictures, place_pictures
from mega_hf.hf.data import Splits, add_calibration
from mega_hf.hf.opened import OpenModel
from mega_hf.hf.rows import Split, fill_pictures
from mega_hf.recipe import Recipe
from mega_hf.weights.batchnorm import statistics_names


@dataclass(frozen=True)
class Loader:
    """Loads splits for one kind of model."""

    model: OpenModel
    mapping: list[int]  # for each class of the data set the model's output
    batch_size: int
    device: torch.device
    memory_share: float  # of what is free, for one split's pictures

    def __call__(self, split: Split) -> Pictures:
        """Decode and transform a split."""
        shape = self.model.picture_shape
        pictures = place_pictures(len(split), shape, self.batch_size, self.device, self.memory_share)
        fill_pictures(split, self.mapping, self.model.transform, pictures.images, pictures.labels)
        return pictures

    def calibration(self, splits: Splits, threads: int) -> Calibration | None:
        """Load the pictures on which merges are recalibrated; None where none is, or can be."""
        digest = splits.digests.get("calibration")
        if digest is None:
            return None
        assert splits.calibration is not None, "its digest is known"
        # By the model alone: statistics depend on it, and must be the same on another kind of device.
        rows = even_batches(len(splits.calibration), suitable(self.model.model, self.model.picture_shape))
        return Calibration(replace(self, batch_size=rows)(splits.calibration), threads, digest)


def calibrated(recipe: Recipe, splits: Splits, parent: OpenModel) -> Splits:
    """Return splits with the rows for BatchNorm's statistics, if a merge computes them anew and the parents have any.

    Raises:
        DataError: there are none.
    """
    wanted = any(node.recalibrates for node in recipe.nodes().values()) and statistics_names(parent.model)
    return add_calibration(splits) if wanted else splits
