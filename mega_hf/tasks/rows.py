"""Rows of one split: chosen, still encoded, hashed, decoded."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL
import torch
from huggingface_hub.constants import HF_HOME
from PIL import Image

from mega_hf.errors import DataError
from mega_hf.recipe.data import CalibrationRows, Sample

_CHUNK = 256  # rows read at once


@dataclass(frozen=True)
class Split:
    """Some rows of a data set, still encoded."""

    spec: str
    origin: str  # the split of the data set that the rows come from
    indices: np.ndarray  # [rows] int64, positions in that split
    rows: datasets.Dataset  # image (undecoded) and label columns alone
    image: str
    label: str

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all rows, each of which has been decoded once to see that it can be.

        Raises:
            DataError: a picture is broken.
        """
        return hashlib.sha256(b"".join(hash_rows(self))).hexdigest()

    def picture(self, i: int) -> Image.Image:
        """Decode one picture.

        Raises:
            DataError: it is broken; the row is named.
        """
        return self._decode(i, self.rows[i][self.image])

    def _decode(self, i: int, stored: dict[str, Any]) -> Image.Image:
        try:
            picture = Image.open(io.BytesIO(_encoded(stored)))
            picture.load()
            return picture
        except (OSError, ValueError, SyntaxError, TypeError) as error:
            got = f"{type(error).__name__}: {error}"
            raise DataError(
                f"a broken picture in row {self.indices[i]} of {self.origin}",
                expected="a picture",
                got=got,
                hint="mend or drop this row",
            ) from None

    def for_each(self, work: Callable[[int, Image.Image], object]) -> None:
        """Decode all pictures, several at a time, and call `work` with each one's place among the
        rows and itself.

        Raises:
            DataError: one is broken, as `picture`; of several the first.
        """
        # Pillow decodes and resizes without Python's lock
        pool = ThreadPoolExecutor(torch.get_num_threads())
        try:
            for start in range(0, len(self), _CHUNK):
                stored = self.rows[start : start + _CHUNK][self.image]
                numbered = range(start, start + len(stored))
                for _ in pool.map(lambda i, one: work(i, self._decode(i, one)), numbered, stored):
                    pass
        finally:
            pool.shutdown(cancel_futures=True)

    def take(self, places: np.ndarray, spec: str) -> Split:
        """Return the rows at some places, under a text that says which they are."""
        return replace(self, spec=spec, indices=self.indices[places], rows=self.rows.select(places))

    def labels(self) -> np.ndarray:
        """Return the rows' labels: [rows] int64."""
        return np.array(
            [-1 if label is None else label for label in self.rows[self.label][:]], dtype=np.int64
        )


def select_rows(spec: str | Sample, whole: datasets.DatasetDict, image: str, label: str) -> Split:
    """Choose the rows of a `datasets` slice or of a sample.

    Raises:
        DataError: there is no such split, or it is empty.
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
            hint="a slice that holds rows",
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
        got = f"{spec}: {' '.join(str(error).split())[:200]}"
        raise DataError(
            "no such split",
            expected="a slice of " + ", ".join(whole),
            got=got,
            hint="data.validation and data.test name the splits",
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
            hint="data.validation and data.test name the splits",
        )
    rows = whole[sample.split]
    if sample.size >= len(rows):
        raise DataError(
            "a sample as large as its split",
            expected=f"fewer than {len(rows)} rows",
            got=sample.size,
            hint="a smaller size",
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
    """Draw some of a split's rows, or take all if it has no more, in the split's order."""
    chosen = draw_places(len(split), wanted.size, wanted.seed)
    text = wanted.model_copy(update={"size": len(chosen)}).text_of(split.spec)
    return split.take(chosen, text)


def draw_places(count: int, wanted: int, seed: int) -> np.ndarray:
    """Draw `wanted` of `count` places, or take all, in ascending order."""
    stream = np.random.Generator(np.random.Philox(key=seed))
    return np.sort(np.argsort(stream.random(count), kind="stable")[:wanted])


def hash_rows(split: Split) -> list[bytes]:
    """Return each row's SHA-256 over the encoded picture and the label, having seen that the
    picture decodes.

    The test split's pictures are looked at here too: no model sees them, but a picture that can't
    be read must not end a run after its search.
    """
    hashes: list[bytes] = []
    labels = split.labels()
    for start in range(0, len(split), _CHUNK):
        for i, stored in enumerate(split.rows[start : start + _CHUNK][split.image], start):
            picture = hashlib.sha256(_read(split, i, stored)).digest()
            hashes.append(picture + int(labels[i]).to_bytes(8, "little", signed=True))
    _see_decoded(split, hashes)
    return hashes


def _read(split: Split, i: int, stored: dict[str, Any]) -> bytes:
    try:
        return _encoded(stored)
    except (OSError, TypeError):
        split.picture(i)  # says what is wrong, and with which row
        raise


def _see_decoded(split: Split, hashes: list[bytes]) -> None:
    """Decode each picture once, unless these very rows were decoded before: that stands in the
    cache, by content."""
    content = hashlib.sha256(PIL.__version__.encode() + b"".join(hashes)).hexdigest()
    known = Path(HF_HOME) / "mega_hf" / "decoded" / content
    if known.exists():
        return
    split.for_each(lambda *_: None)
    with suppress(OSError):  # no room, or not ours to write: they are decoded again the next time
        known.parent.mkdir(parents=True, exist_ok=True)
        known.touch()


def _encoded(value: dict[str, Any]) -> bytes:
    return value["bytes"] if value.get("bytes") is not None else Path(value["path"]).read_bytes()
