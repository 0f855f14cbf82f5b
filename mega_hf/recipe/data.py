"""The block of a recipe that says which rows of which data set; every default written out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from mega_hf.recipe.fields import Count, Seed, Strict
from mega_hf.recipe.placeholders import Reference

SECOND_LOOK_SEED = 46  # draws the validation rows that no search sees

_Slice = Annotated[str, Tag("slice")]
_KIND = Discriminator(lambda value: "sample" if isinstance(value, dict | Strict) else "slice")


class Sample(Strict):
    """`size` rows of a split, drawn by `seed`; with `stratify` each class has its share."""

    split: str = "train"
    size: Count
    seed: Seed = 46
    stratify: bool = True

    @property
    def text(self) -> str:
        """Say in words which rows these are."""
        return f"{self.size} rows of {self.split} (seed {self.seed})"


class CalibrationRows(Strict):
    """`size` of the training rows, drawn by `seed`, on which BatchNorm's statistics are
    computed."""

    size: Annotated[int, Field(ge=2, le=10**9)] = 1280
    seed: Seed = 46

    def text_of(self, train: str) -> str:
        """Say in words which rows these are."""
        return f"{self.size} rows of {train} (seed {self.seed})"


class Data(Strict):
    """A data set with a picture column and a label column; splits are `datasets` slices or samples.

    `second_look` is the share of the validation rows that the search never sees: on them its best
        individual meets the
    baselines and the parents before one of them is named the merged model. 0: there is no second
        look.
    """

    path: Reference
    name: str | None = None
    revision: str | None = None
    image: str | None = None
    label: str | None = None
    train: str = "train"
    validation: Annotated[_Slice | Annotated[Sample, Tag("sample")], _KIND] | None = None
    test: str | None = None
    calibration: Annotated[_Slice | Annotated[CalibrationRows, Tag("sample")], _KIND] | None = None
    second_look: Annotated[float, Field(ge=0, le=0.9)] = 0.5

    def text_of(self, split: str, rows: int) -> str:
        """Say in words which rows a split is, of a recipe whose defaults are filled in; `rows` of
        them."""
        entry = self.validation if split == "second_look" else getattr(self, split)
        if isinstance(entry, CalibrationRows):
            return entry.text_of(self.train)
        text = entry.text if isinstance(entry, Sample) else str(entry)
        if split == "second_look":
            return CalibrationRows(size=rows, seed=SECOND_LOOK_SEED).text_of(text)
        return (
            f"{text} without the second look"
            if split == "validation" and self.second_look
            else text
        )
