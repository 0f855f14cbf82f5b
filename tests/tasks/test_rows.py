"""Rows of a split: decoded several at a time, hashed, and seen to decode once for all runs."""

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
from mega_hf.tasks import rows
from mega_hf.tasks.image_classification import fill_examples
from mega_hf.tasks.rows import Split, hash_rows
from mega_hf.tasks.splits import load_split
from tests.tools import tiny


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """600 rows: more than are read at once."""
    folder = tiny.write_splits(
        tmp_path / "data", {"train": tiny.split(600, 1), "test": tiny.split(3, 2)}
    )
    return load_split(Data(path=str(folder)), "train")[0]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that are decoded from here on."""
    seen: list[int] = []
    decode = Split._decode
    monkeypatch.setattr(
        Split, "_decode", lambda self, i, stored: seen.append(i) or decode(self, i, stored)
    )
    return seen


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rows, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def _break(split: Split, at: int, stored: bytes | str) -> Split:
    """Put other bytes, or the path of a file, in the place of a picture."""
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
def test_each_picture_comes_to_its_own_place(
    split: Split, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    images, labels = torch.zeros(600, 8, 8, 3), torch.zeros(600, dtype=torch.int64)
    fill_examples(
        split, [2, 0, 1], lambda picture: torch.from_numpy(np.array(picture)), images, labels
    )
    expected, classes = tiny.examples(600, 1)
    assert np.array_equal(images.numpy(), expected)
    assert labels.tolist() == [[2, 0, 1][label] for label in classes]


def test_of_several_broken_pictures_the_first_is_named(split: Split) -> None:
    twice = _break(_break(split, 500, b"no picture"), 300, b"nor this")
    with pytest.raises(DataError, match="row 300 of train"):
        hash_rows(twice)


def test_a_picture_that_is_not_there_is_named(split: Split) -> None:
    with pytest.raises(DataError, match="row 7 of train"):
        hash_rows(_break(split, 7, "nowhere.png"))


def test_an_interruption_does_not_wait_for_the_rest(split: Split) -> None:
    """Ctrl-C reaches the main thread while others decode."""
    done: list[int] = []

    def work(i: int, _: Image.Image) -> None:
        if i > 20:
            time.sleep(0.05)  # tiny pictures may all be decoded before the main thread hears of it
        done.append(i)
        if i == 20:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        split.for_each(work)
    assert len(done) < 256 and threading.active_count() == before


def test_rows_that_decoded_once_are_not_decoded_again(
    split: Split, home: Path, decoded: list[int]
) -> None:
    first = hash_rows(split)
    assert sorted(decoded) == list(range(600))
    decoded.clear()
    assert hash_rows(split) == first and decoded == []
    hash_rows(replace(split, rows=split.rows.select(range(599)), indices=split.indices[:599]))
    assert len(decoded) == 599, "other rows"


def test_rows_that_did_not_decode_are_tried_again(split: Split, home: Path) -> None:
    broken = _break(split, 300, b"no picture")
    for _ in range(2):
        with pytest.raises(DataError, match="row 300"):
            hash_rows(broken)


def test_no_room_for_the_cache_is_no_error(split: Split, home: Path, decoded: list[int]) -> None:
    home.write_text("a file where a folder should be")
    assert hash_rows(split) == hash_rows(split)
    assert len(decoded) == 1200
