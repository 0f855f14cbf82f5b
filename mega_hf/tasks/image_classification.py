"""Image classification: find and decode images, match classes, judge logits.

This is the only file of the package that knows what a row holds and what an output means. Models
bring their own transform.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image
from torch import nn

from mega_hf.errors import DataError
from mega_hf.recipe.data import Data


def find_columns(
    data: Data, whole: datasets.DatasetDict
) -> tuple[str, str, tuple[str, ...] | None]:
    """Return the image column, the label column, and the class names if there are any.

    Raises:
        DataError: there is no such column, or it holds something else.
    """
    features = next(iter(whole.values())).features
    image = data.image or _only(features, datasets.Image, "image")
    label = data.label or _only(features, datasets.ClassLabel, "label")
    for key, column in (("image", image), ("label", label)):
        if column not in features:
            raise DataError(
                "no such column",
                key=key,
                expected="one of " + ", ".join(features),
                got=column,
                hint="data.image and data.label name the columns",
            )
    if not isinstance(features[image], datasets.Image):
        raise DataError(
            f"the column {image} holds no images",
            key="image",
            expected="an Image column",
            got=features[image],
            hint="data.image: the name of the Image column",
        )
    feature = features[label]
    if isinstance(feature, datasets.ClassLabel):
        return image, label, tuple(feature.names)
    if "int" not in str(getattr(feature, "dtype", "")):
        raise DataError(
            f"the column {label} holds no classes",
            key="label",
            expected="a ClassLabel or integer column",
            got=feature,
            hint="data.label: the name of the label column",
        )
    return image, label, None


def _only(features: datasets.Features, kind: type, key: str) -> str:
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        raise DataError(
            f"which column is the {key}?",
            expected=f"one {kind.__name__} column",
            got=", ".join(found) or "none among " + ", ".join(features),
            hint=f"data.{key}: NAME",
        )
    return found[0]


def encoded_image(stored: dict[str, Any] | None, row: str) -> bytes:
    """Return the bytes of an image as the data set stores it.

    Args:
        stored: {bytes, path}, one of which is None.
        row: which row it is, for errors.

    Raises:
        DataError: the file can't be read.
    """
    stored = stored or {}
    try:
        return stored["bytes"] if stored.get("bytes") is not None else _read(stored["path"])
    except (OSError, TypeError, KeyError) as error:
        raise _broken(stored, row, error) from None


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


def decode_image(stored: dict[str, Any] | None, row: str) -> Image.Image:
    """Decode an image as the data set stores it; args as `encoded_image`.

    Raises:
        DataError: the image is broken.
    """
    try:
        image = Image.open(io.BytesIO(encoded_image(stored, row)))
        image.load()
        return image
    except (OSError, ValueError, SyntaxError, TypeError) as error:  # Pillow's formats raise these
        raise _broken(stored or {}, row, error) from None


def _broken(stored: dict[str, Any], row: str, error: Exception) -> DataError:
    file = stored.get("path")
    return DataError(
        f"a broken image in {row}",
        expected="an image",
        got=f"{f'{file}: ' if file else ''}{type(error).__name__}: {error}",
        hint="fix this image or drop its row; then resume with --update",
    )


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return a model's logits.

    Args:
        model: of timm, which returns a tensor, or of transformers, which returns a record.
        images: [rows, channels, height, width].

    Returns:
        [rows, classes].
    """
    output = model(images)
    return getattr(output, "logits", output)


def judge(scores: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Compare logits with labels.

    Args:
        scores: [rows, classes] logits.
        labels: [rows] int64.

    Returns:
        four tensors of [rows]: whether the row is correct; its margin, which is the label's logit
        less the largest of the others; whether all its logits are finite; its cross-entropy in
        nats.
    """
    labels = labels[:, None]
    others = scores.scatter(1, labels, -math.inf).amax(dim=1)
    own = scores.gather(1, labels)[:, 0]
    loss = scores.logsumexp(dim=1) - own
    correct = scores.argmax(dim=1) == labels[:, 0]
    return correct, own - others, torch.isfinite(scores).all(dim=1), loss


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
        raise DataError(
            "the model lacks a class of the data set",
            expected=f"{classes} classes",
            got=f"{num_classes} outputs",
            hint="a model or a data set with the same classes",
        )
    who = "the model" if not labels else "the data set"
    return list(range(classes)), f"by position, since {who} has no class names"
