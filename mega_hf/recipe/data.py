"""The recipe's `data` block: which rows of which data set."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from mega_hf.recipe.fields import Count, Seed, Strict
from mega_hf.recipe.placeholders import Reference

SECOND_LOOK_SEED = 46  # draws the held-out validation rows

_Slice = Annotated[str, Tag("slice")]
_KIND = Discriminator(lambda value: "sample" if isinstance(value, dict | Strict) else "slice")


class Sample(Strict):
    """A random sample of a split's rows."""

    split: str = Field(default="train", description="Split, or `datasets` slice, to draw from.")
    size: Count = Field(description="Number of rows.")
    seed: Seed = Field(default=46, description="Seed of the draw.")
    stratify: bool = Field(
        default=True, description="Draw from each class in proportion to its size."
    )

    @property
    def text(self) -> str:
        """The rows in words, as in the result and the card."""
        return f"{self.size} rows of {self.split} (seed {self.seed})"


class CalibrationRows(Strict):
    """A random sample of the training rows, to recompute BatchNorm statistics on."""

    size: int = Field(
        default=1280,
        ge=2,
        le=10**9,
        description="Number of rows; all training rows if there are fewer.",
    )
    seed: Seed = Field(default=46, description="Seed of the draw.")

    def text_of(self, train: str) -> str:
        """Return the rows in words, as in the result and the card."""
        return f"{self.size} rows of {train} (seed {self.seed})"


class Data(Strict):
    """The data set, its columns and its splits."""

    path: Reference = Field(
        description="Data set on the Hub (`ORG/NAME`) or folder (`./FOLDER`) that"
        " `datasets.load_dataset` can read."
    )
    name: str | None = Field(
        default=None, description="Configuration of the data set. `null`: the only or default one."
    )
    revision: str | None = Field(
        default=None,
        description="Branch, tag or commit on the Hub. `null`: `main`. A run stores the commit.",
    )
    image: str | None = Field(
        default=None, description="Column of the images. `null`: the only column of type Image."
    )
    label: str | None = Field(
        default=None,
        description="Column of the labels. `null`: the only column of type ClassLabel.",
    )
    train: str = Field(
        default="train",
        description="Split, or slice, to train and to recalibrate on; rows of `validation` and"
        " `test` are left out.",
    )
    validation: Annotated[_Slice | Annotated[Sample, Tag("sample")], _KIND] | None = Field(
        default=None,
        description="Rows that the search evaluates on: a split, a slice (`train[45000:]`) or a"
        " sample. `null`: the split named validation, else a tenth of the training split, at most"
        " 5,000 rows.",
    )
    test: str | None = Field(
        default=None,
        description="Split, or slice, that is read once, after the search. `null`: the split named"
        " test.",
    )
    calibration: Annotated[_Slice | Annotated[CalibrationRows, Tag("sample")], _KIND] | None = (
        Field(
            default=None,
            description="Rows to recompute BatchNorm statistics on: a slice, or a sample of the"
            " training rows. `null`: a sample with its defaults, if a model has BatchNorm.",
        )
    )
    second_look: float = Field(
        default=0.5,
        ge=0,
        le=0.9,
        description="Share of the validation rows that is held out from the search; the final"
        " model is selected on them. `0`: the search's best is the final model.",
    )

    def text_of(self, split: str, rows: int) -> str:
        """Return the rows of a split in words, as in the result and the card.

        Args:
            split: the name of the split; the data's defaults must be filled in.
            rows: the number of rows of the split.
        """
        entry = self.validation if split == "second_look" else getattr(self, split)
        if isinstance(entry, CalibrationRows):
            return entry.text_of(self.train)
        text = entry.text if isinstance(entry, Sample) else str(entry)
        if split == "second_look":
            return CalibrationRows(size=rows, seed=SECOND_LOOK_SEED).text_of(text)
        return (
            f"{text} without the held-out rows"
            if split == "validation" and self.second_look
            else text
        )
