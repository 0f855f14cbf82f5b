"""Image classification: decode images, match classes, judge logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import nn

from mega_hf.errors import DataError
from mega_hf.tasks.rows import Split


def _judge(scores: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return for each row whether it is right, the margin by which, whether all logits are finite,
    and the loss."""
    labels = labels[:, None]
    others = scores.scatter(1, labels, -math.inf).amax(dim=1)
    own = scores.gather(1, labels)[:, 0]
    loss = scores.logsumexp(dim=1) - own
    return (
        scores.argmax(dim=1) == labels[:, 0],
        own - others,
        torch.isfinite(scores).all(dim=1),
        loss,
    )


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return [rows, classes] from a timm model (a tensor) or a transformers model (a record with
    `logits`)."""
    output = model(images)
    return getattr(output, "logits", output)


def match_classes(
    labels: tuple[str, ...] | None, num_classes: int, names: tuple[str, ...] | None, classes: int
) -> tuple[list[int], str]:
    """Map each class of the data set to an output of the model.

    Args:
        labels: the model's class names, if it has any.
        num_classes: how many outputs it has.
        names: the data set's class names, if it has any.
        classes: how many classes the data set has.

    Returns:
        for each class of the data set the model's output, and how they were matched, in words.

    Raises:
        DataError: the model lacks a class.
    """
    if labels and names:
        missing = [name for name in names if name not in labels]
        if missing:
            raise DataError(
                "the model lacks a class of the data set",
                expected=", ".join(names),
                got=f"no {missing[0]} among " + ", ".join(labels),
                hint="another data set, or rename the classes in the model's config.json",
            )
        return [labels.index(name) for name in names], "by name"
    if classes > num_classes:
        got = f"{num_classes} outputs"
        raise DataError(
            "the model lacks a class of the data set",
            expected=f"{classes} classes",
            got=got,
            hint="a model or a data set with the same classes",
        )
    who = "the model" if not labels else "the data set"
    return list(range(classes)), f"by position, since {who} has no class names"


def fill_examples(
    split: Split,
    mapping: list[int],
    transform: Callable[[Image.Image], torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    """Decode and transform a split once, into the tensors given ([rows or more, ...] float32 and
    int64)."""

    def place(i: int, picture: Image.Image) -> None:
        images[i] = transform(picture)

    split.for_each(place)
    labels[: len(split)] = torch.tensor([mapping[label] for label in split.labels()])


def check_labels(split: Split, classes: int) -> None:
    """Raise DataError if a label is not in [0, classes); -1 is what the Hub's unlabelled test
    splits have."""
    labels = split.labels()
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        row, got = split.indices[wrong[0]], labels[wrong[0]]
        raise DataError(
            f"labels out of range in {split.spec}",
            expected=f"0 to {classes - 1}",
            got=f"{got} in row {row}, {len(wrong)} in all",
            hint="a split with labels",
        )
