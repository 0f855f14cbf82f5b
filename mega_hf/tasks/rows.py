"""Rows of one split: choose, hash, decode."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from mega_hf.errors import DataError
from mega_hf.recipe.data import CalibrationRows, Sample
from mega_hf.tasks.image_classification import decode_image, encoded_image

_CHUNK = 256  # rows read at once


@dataclass(frozen=True)
class Split:
    """Some rows of a data set, still encoded."""

    spec: str  # which rows these are, in words
    origin: str  # the split of the data set that the rows come from
    indices: np.ndarray  # [rows] int64, positions in that split
    rows: datasets.Dataset  # image (undecoded) and label columns alone
    image: str
    label: str

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all rows."""
        return hashlib.sha256(b"".join(hash_rows(self))).hexdigest()

    def example(self, i: int) -> Image.Image:
        """Decode one row's image.

        Raises:
            DataError: the image is broken; the row is named.
        """
        return self._decode(i, self.rows[i][self.image])

    def _decode(self, i: int, stored: dict[str, Any] | None) -> Image.Image:
        return decode_image(stored, self.name_row(i))

    def name_row(self, i: int) -> str:
        """Return which row of the data set this is, for errors."""
        return f"row {self.indices[i]} of {self.origin}"

    def chunks(self) -> Iterator[tuple[range, list[dict[str, Any]]]]:
        """Yield the rows' places and stored images, some rows at a time."""
        for start in range(0, len(self), _CHUNK):
            stored = self.rows[start : start + _CHUNK][self.image]
            yield range(start, start + len(stored)), stored

    def for_each(self, work: Callable[[int, Image.Image], object]) -> None:
        """Decode all images, several at a time, and call `work` with each one's place and itself.

        Raises:
            DataError: an image is broken, as `example`; of several the first.
        """
        # Pillow decodes and resizes without Python's lock
        pool = ThreadPoolExecutor(torch.get_num_threads())
        try:
            for places, stored in self.chunks():
                for _ in pool.map(lambda i, one: work(i, self._decode(i, one)), places, stored):
                    pass
        finally:
            pool.shutdown(cancel_futures=True)

    def take(self, places: np.ndarray, spec: str) -> Split:
        """Return the rows at some places; `spec` says which they are."""
        return replace(self, spec=spec, indices=self.indices[places], rows=self.rows.select(places))

    def labels(self) -> np.ndarray:
        """Return the rows' labels, -1 where there is none: [rows] int64."""
        labels = self.rows[self.label][:]
        return np.array([-1 if label is None else label for label in labels], dtype=np.int64)


def select_rows(spec: str | Sample, whole: datasets.DatasetDict, image: str, label: str) -> Split:
    """Choose the rows of a `datasets` slice or of a sample.

    Raises:
        DataError: there is no such split, or no row in the slice.
    """
    if isinstance(spec, Sample):
        origin, indices, text = spec.split, _draw(spec, whole, label), spec.text
    else:
        origin, indices, text = *_slice(spec, whole), spec
    if not len(indices):
        raise DataError(
            "an empty split",
            expected="at least one row",
            got=text,
            hint="use a slice that contains rows",
        )
    rows = (
        whole[origin]
        .select_columns([image, label])
        .cast_column(image, datasets.Image(decode=False))
    )
    return Split(text, origin, indices, rows.select(indices), image, label)


def _slice(spec: str, whole: datasets.DatasetDict) -> tuple[str, np.ndarray]:
    try:
        absolute = datasets.ReadInstruction.from_spec(spec).to_absolute(
            {k: len(v) for k, v in whole.items()}
        )
    except (ValueError, AssertionError, KeyError) as error:
        raise DataError(
            "no such split",
            expected="a slice of " + ", ".join(whole),
            got=f"{spec}: {' '.join(str(error).split())[:200]}",
            hint="set data.validation and data.test to splits of the data set",
        ) from None
    origins = {part.splitname for part in absolute}
    if len(origins) > 1:
        raise DataError(
            "rows of several splits",
            expected="a slice of one split",
            got=spec,
            hint="take all rows from one split",
        )
    indices = np.concatenate([np.arange(part.from_, part.to, dtype=np.int64) for part in absolute])
    return origins.pop(), indices


def _draw(sample: Sample, whole: datasets.DatasetDict, label: str) -> np.ndarray:
    if sample.split not in whole:
        raise DataError(
            "no such split",
            expected=", ".join(whole),
            got=sample.split,
            hint="set data.validation and data.test to splits of the data set",
        )
    rows = whole[sample.split]
    if sample.size >= len(rows):
        raise DataError(
            "a sample as large as its split",
            expected=f"fewer than {len(rows)} rows",
            got=sample.size,
            hint="use a smaller size",
        )
    numbered = rows.select_columns([label]).add_column("row", range(len(rows)))
    generator = np.random.Generator(np.random.Philox(key=sample.seed))
    stratify = label if sample.stratify else None
    try:
        drawn = numbered.train_test_split(
            test_size=sample.size, stratify_by_column=stratify, generator=generator
        )["test"]
    except ValueError as error:
        raise DataError(
            "the sample can't be drawn",
            expected="rows of every class",
            got=error,
            hint="stratify: false",
        ) from None
    return np.sort(np.array(drawn["row"][:], dtype=np.int64))


def sample_rows(split: Split, wanted: CalibrationRows) -> Split:
    """Draw some of a split's rows, or take all if there are no more, in the split's order."""
    chosen = draw_places(len(split), wanted.size, wanted.seed)
    text = wanted.model_copy(update={"size": len(chosen)}).text_of(split.spec)
    return split.take(chosen, text)


def draw_places(count: int, wanted: int, seed: int) -> np.ndarray:
    """Draw `wanted` of `count` places, or take all, in ascending order."""
    stream = np.random.Generator(np.random.Philox(key=seed))
    return np.sort(np.argsort(stream.random(count), kind="stable")[:wanted])


def hash_rows(split: Split) -> list[bytes]:
    """Return each row's SHA-256 over the encoded image, followed by the label's 8 bytes.

    Raises:
        DataError: an image's file can't be read.
    """
    labels = split.labels()
    return [
        hashlib.sha256(encoded_image(image, split.name_row(i))).digest()
        + int(labels[i]).to_bytes(8, "little", signed=True)
        for places, stored in split.chunks()
        for i, image in zip(places, stored, strict=True)
    ]


def load_examples(
    split: Split,
    mapping: list[int],
    transform: Callable[[Image.Image], torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    """Decode and transform all rows of a split into given tensors.

    Args:
        split: the rows.
        mapping: for each class of the data set the model's output.
        transform: an image to [channels, height, width] float32.
        images: [rows or more, channels, height, width] float32, written to.
        labels: [rows or more] int64, written to.

    Raises:
        DataError: an image is broken.
    """

    def place(i: int, image: Image.Image) -> None:
        images[i] = transform(image)

    split.for_each(place)
    labels[: len(split)] = torch.tensor([mapping[label] for label in split.labels()])


def check_labels(split: Split, classes: int) -> None:
    """Raise DataError if a label is not in [0, classes).

    The Hub's unlabelled test splits have labels of -1.
    """
    labels = split.labels()
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        row, label = split.indices[wrong[0]], labels[wrong[0]]
        raise DataError(
            f"labels out of range in {split.spec}",
            expected=f"0 to {classes - 1}",
            got=f"{label} in row {row}, {len(wrong)} in all",
            hint="a split with labels",
        )
