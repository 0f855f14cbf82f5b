"""Splits as pictures that are ready to use: decoded and transformed once, in the one batch shape of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from mega_hf.aligning import check_alignable
from mega_hf.evaluation.batches import even_batches, suitable
from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import Pictures, place_pictures
from mega_hf.hf.data import Splits, add_calibration
from mega_hf.hf.opened import OpenModel
from mega_hf.hf.rows import Split, fill_pictures
from mega_hf.inputs import is_recalibrated
from mega_hf.recipe import Recipe
from mega_hf.settings import Merge


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
        return self.calibrate(splits.calibration, threads, digest)

    def calibrate(self, split: Split, threads: int, digest: str = "") -> Calibration:
        """Load the pictures of a split as those from which statistics follow."""
        # By the model alone: statistics depend on it, and must be the same on another kind of device.
        rows = even_batches(len(split), suitable(self.model.model, self.model.picture_shape))
        return Calibration(replace(self, batch_size=rows)(split), threads, digest)


def prepared(recipe: Recipe, splits: Splits, parent: OpenModel) -> Splits:
    """See that parents of a kind can be treated as their merges ask; return splits with the rows for that.

    Raises:
        DataError: there are none.
        ParentError: the model can't be aligned.
    """
    nodes = recipe.nodes().values()
    check_alignable(nodes, parent.model, parent.picture_shape, parent.structure.get("architecture", "model"))
    wanted = needs_calibration(nodes, parent.model)
    if recipe.is_open:  # what is there may be used; what is not is no error
        wanted = splits.calibration is not None and len(splits.calibration) > 1
    return add_calibration(splits) if wanted else splits


def needs_calibration(nodes: Iterable[Merge], model: nn.Module) -> bool:
    """Say whether merges need pictures beside those that individuals are measured on."""
    return any(node.align == "activations" or is_recalibrated(node, model) for node in nodes)
