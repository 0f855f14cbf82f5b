"""Rows of a split: decode several at a time, and hash without decoding."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mega_hf.errors import DataError
from mega_hf.recipe.data import Data
from mega_hf.tasks.rows import Split, hash_rows, load_examples
from mega_hf.tasks.splits import load_split
from tests.tools import tiny


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """600 rows: more than are read at once."""
    folder = tiny.write_splits(
        tmp_path / "data", {"train": tiny.split(600, 1), "test": tiny.split(3, 2)}
    )
    return load_split(Data(path=str(folder)), "train")[0]


def _break(split: Split, at: int, stored: bytes | str) -> Split:
    """Put other bytes, or the path of a file, in place of an image."""
    encoded = split.rows[:]["image"]
    is_path = isinstance(stored, str)
    encoded[at] = {"bytes": None if is_path else stored, "path": stored if is_path else None}
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.Value("int64")}
    )
    labels = split.labels().tolist()
    return replace(
        split,
        rows=datasets.Dataset.from_dict({"image": encoded, "label": labels}, features=features),
    )


@pytest.mark.parametrize("threads", [1, 4])
def test_each_image_is_written_to_its_own_row(
    split: Split, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    images, labels = torch.zeros(600, 8, 8, 3), torch.zeros(600, dtype=torch.int64)
    load_examples(split, [2, 0, 1], lambda image: torch.from_numpy(np.array(image)), images, labels)
    expected, classes = tiny.examples(600, 1)
    assert np.array_equal(images.numpy(), expected)
    assert labels.tolist() == [[2, 0, 1][label] for label in classes]


def test_of_several_broken_images_the_first_is_named(split: Split) -> None:
    twice = _break(_break(split, 500, b"not an image"), 300, b"nor this")
    with pytest.raises(DataError, match="broken image in row 300 of train"):
        twice.for_each(lambda *_: None)


def test_a_missing_image_file_is_named(split: Split) -> None:
    with pytest.raises(DataError, match=r"row 7 of train[\s\S]*nowhere\.png"):
        hash_rows(_break(split, 7, "nowhere.png"))


def test_hashing_does_not_decode(split: Split) -> None:
    broken, hashes = _break(split, 7, b"not an image"), hash_rows(split)
    assert [i for i, row in enumerate(hash_rows(broken)) if row != hashes[i]] == [7]


def test_an_interruption_does_not_wait_for_the_rest(split: Split) -> None:
    """Ctrl-C reaches the main thread while others decode."""
    done: list[int] = []

    def work(i: int, _: Image.Image) -> None:
        if i > 20:
            time.sleep(0.05)  # tiny images may all be decoded before the main thread knows
        done.append(i)
        if i == 20:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        split.for_each(work)
    assert len(done) < 256 and threading.active_count() == before
