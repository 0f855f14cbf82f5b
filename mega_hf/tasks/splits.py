"""Divide a data set: which rows, columns and classes; the test split is kept apart."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np

from mega_hf.errors import DataError
from mega_hf.recipe.data import SECOND_LOOK_SEED, CalibrationRows, Data, Sample
from mega_hf.tasks.dataset import open_dataset
from mega_hf.tasks.image_classification import find_columns
from mega_hf.tasks.rows import (
    Split,
    check_labels,
    draw_places,
    hash_rows,
    sample_rows,
    select_rows,
)

DEFAULT_SAMPLE = 5000
# more identical images than this share of the validation rows is a leak, not a coincidence
_SHARED_LIMIT = 0.01


@dataclass(frozen=True)
class Splits:
    """The rows of a data set that a run uses."""

    train: Split | None  # the training split's rows that are neither in validation nor in test
    validation: Split
    test: Split
    class_names: tuple[str, ...] | None
    classes: int
    data: Data  # with every default filled in: columns, splits, revision
    source: dict[str, Any]  # {hub, revision} or {local}: never a path of this machine
    digests: dict[str, str]  # validation, test, second_look: SHA-256 over rows
    shared_images: int  # images that are both in validation and in test
    notices: tuple[str, ...]
    # rows of `train` for BatchNorm's statistics, if there are any
    calibration: Split | None = None
    # held-out validation rows, which the search never sees; no part of `validation`
    second_look: Split | None = None

    @property
    def named(self) -> list[tuple[str, Split, str]]:
        """All rows but those for training, as (name, rows, digest)."""
        rows = {"validation": self.validation, "test": self.test, "calibration": self.calibration}
        rows |= {"second_look": self.second_look}
        return [
            (name, split, self.digests[name])
            for name, split in rows.items()
            if split is not None and name in self.digests
        ]


def load_splits(data: Data, trained_here: bool = False) -> Splits:
    """Load a data set and divide it as a recipe says.

    Args:
        data: which splits.
        trained_here: whether all parents are trained here, on rows that are neither in validation
            nor in test; else a notice is given where parents may have seen validation rows.

    Raises:
        DataError: the data set can't be found or read, a column or split is missing, a split is
            empty, labels are out of range, or validation and test overlap.
    """
    whole, data, source = open_dataset(data)
    data = _default_splits(data, whole)
    image, label, names = find_columns(data, whole)
    data = data.model_copy(update={"image": image, "label": label})
    assert data.validation is not None and data.test is not None, "the defaults filled them in"
    with DataError.about("validation"):
        validation = select_rows(data.validation, whole, image, label)
    with DataError.about("test"):
        test = select_rows(data.test, whole, image, label)
        _check_overlap(validation, test)
    notices: tuple[str, ...] = ()
    if validation.origin == data.train.split("[")[0] and not trained_here:
        rows = (
            f"are {validation.spec}"
            if isinstance(data.validation, Sample)
            else f"come from {validation.origin}"
        )
        notices = (f"validation rows {rows}: right only if no parent was trained on them",)
    hashes = {"validation": hash_rows(validation), "test": hash_rows(test)}
    shared = _shared_images(hashes["validation"], hashes["test"])
    with DataError.about("train"):
        train = _remaining(data, whole, image, label, [validation, test])
    calibration = _calibration(data, whole, image, label, train, [validation, test])
    labelled = [split for split in (train, validation, test) if split is not None and len(split)]
    classes = len(names) if names else int(max(split.labels().max() for split in labelled)) + 1
    # the labels of training rows are checked where parents are trained
    for key, split in (("validation", validation), ("test", test)):
        with DataError.about(key):
            check_labels(split, classes)
    if shared:
        notices = (*notices, f"{shared} validation images are in the test split too")
    searched, second = _divide(validation, data, hashes)
    digests = {name: hashlib.sha256(b"".join(rows)).hexdigest() for name, rows in hashes.items()}
    return Splits(
        train,
        searched,
        test,
        names,
        classes,
        data,
        source,
        digests,
        shared,
        notices,
        calibration,
        second,
    )


def add_calibration(splits: Splits) -> Splits:
    """Return splits with the digest of their calibration rows, and the recipe's entry for these.

    Raises:
        DataError: there are fewer than two rows.
    """
    rows = splits.calibration
    if rows is None or len(rows) < 2:
        raise DataError(
            "no images to recalibrate BatchNorm's statistics on",
            key="calibration",
            expected=f"two rows of {splits.data.train} or more",
            got=(
                "none beside validation and test" if rows is None else f"{len(rows)} in {rows.spec}"
            ),
            hint=(
                "data.train or data.calibration: another slice; or --set merge.batchnorm=blend,"
                " which needs none"
            ),
        )
    entry = splits.data.calibration or CalibrationRows()
    entry = entry if isinstance(entry, str) else entry.model_copy(update={"size": len(rows)})
    data = splits.data.model_copy(update={"calibration": entry})
    return replace(splits, data=data, digests=splits.digests | {"calibration": rows.digest})


def _calibration(
    data: Data,
    whole: datasets.DatasetDict,
    image: str,
    label: str,
    train: Split | None,
    held_out: list[Split],
) -> Split | None:
    """Return the rows for BatchNorm's statistics: the recipe's, by default some of `train`."""
    if isinstance(data.calibration, str):
        with DataError.about("calibration"):
            chosen = select_rows(data.calibration, whole, image, label)
            for split, name in zip(held_out, ("validation", "test"), strict=True):
                _check_overlap(split, chosen, f"{name} and calibration")
        return chosen
    if train is None or not len(train):
        return None
    return sample_rows(train, data.calibration or CalibrationRows())


def load_split(data: Data, spec: str) -> tuple[Split, tuple[str, ...] | None, int]:
    """Load one split, for `evaluate`.

    Returns:
        the split, the class names if the data set has them, and how many classes.
    """
    whole, data, _ = open_dataset(data)
    image, label, names = find_columns(data, whole)
    split = select_rows(spec, whole, image, label)
    classes = len(names) if names else int(split.labels().max()) + 1
    check_labels(split, classes)
    return split, names, classes


def load_sample(
    data: Data, spec: str | None, size: int
) -> tuple[Split, Split | None, tuple[str, ...] | None, int]:
    """Load some rows to evaluate on, and others to recalibrate on, for `compare`.

    Args:
        data: the data set.
        spec: a slice; by default the split named validation, else the training split.
        size: rows to evaluate on, drawn at random where there are more.

    Returns:
        the rows to evaluate on; those to recalibrate on, None where no others exist; the class
        names if the data set has them; how many classes.

    Raises:
        DataError: the data set can't be read, or a label is out of range.
    """
    whole, data, _ = open_dataset(data)
    image, label, names = find_columns(data, whole)
    all_rows = select_rows(
        spec or ("validation" if "validation" in whole else data.train), whole, image, label
    )
    rows = sample_rows(all_rows, CalibrationRows(size=max(2, size)))
    rest = _remaining(data, whole, image, label, [rows])
    calibration = (
        sample_rows(rest, CalibrationRows()) if rest is not None and len(rest) >= 2 else None
    )
    classes = len(names) if names else int(all_rows.labels().max()) + 1
    check_labels(rows, classes)
    return rows, calibration, names, classes


def _default_splits(data: Data, whole: datasets.DatasetDict) -> Data:
    """Fill in the data set's own splits, or else a sample of the training split to validate on."""
    if data.test is None:
        if "test" not in whole:
            raise DataError(
                "no test split",
                expected="data.test, or a split named test",
                got=", ".join(whole),
                hint="--test SPLIT",
            )
        data = data.model_copy(update={"test": "test"})
    if data.validation is None and "validation" in whole:
        data = data.model_copy(update={"validation": "validation"})
    if data.validation is None:
        if data.train not in whole:
            raise DataError(
                "no validation split",
                expected="data.validation, or a training split",
                got=", ".join(whole),
                hint="--validation SPLIT",
            )
        size = min(DEFAULT_SAMPLE, len(whole[data.train]) // 10)
        sample = Sample(split=data.train, size=max(1, size))
        data = data.model_copy(update={"validation": sample})
    return data


def _divide(
    validation: Split, data: Data, hashes: dict[str, list[bytes]]
) -> tuple[Split, Split | None]:
    """Divide the validation rows between the search and the held-out selection.

    Args:
        validation: all validation rows.
        data: which share is held out.
        hashes: of each split's rows; those of the validation rows are divided in place.

    Returns:
        the rows for the search, and the held-out rows, if any.

    Raises:
        DataError: the share is less than one row.
    """
    if not data.second_look:
        return validation, None
    count = len(validation)
    later = draw_places(count, min(round(data.second_look * count), count - 1), SECOND_LOOK_SEED)
    if not len(later):
        raise DataError(
            "no validation rows for the held-out selection",
            key="second_look",
            expected=f"a share of {validation.spec} that is a row or more",
            got=f"{data.second_look:g} of {count}",
            hint="more validation rows, or data.second_look: 0",
        )
    places = {"validation": np.setdiff1d(np.arange(count), later), "second_look": later}
    whole = hashes["validation"]
    hashes |= {name: [whole[place] for place in chosen] for name, chosen in places.items()}
    searched, second = (
        validation.take(chosen, data.text_of(name, len(chosen))) for name, chosen in places.items()
    )
    return searched, second


def _check_overlap(one: Split, other: Split, names: str = "validation and test") -> None:
    if one.origin == other.origin:
        both = np.intersect1d(one.indices, other.indices)
        if len(both):
            raise DataError(
                f"{names} overlap",
                expected="no common rows",
                got=f"{len(both)} rows of {one.origin} in both {one.spec} and {other.spec}",
                hint="choose slices without common rows: otherwise the evaluation is worthless",
            )


def _shared_images(validation: list[bytes], test: list[bytes]) -> int:
    shared = len(set(validation) & set(test))
    if shared > _SHARED_LIMIT * len(validation):
        raise DataError(
            "validation and test hold the same images",
            key="test",
            expected=f"at most {_SHARED_LIMIT:.0%} of the validation rows",
            got=f"{shared} of {len(validation)}",
            hint="use splits that have no images in common",
        )
    return shared


def _remaining(
    data: Data, whole: datasets.DatasetDict, image: str, label: str, held_out: list[Split]
) -> Split | None:
    if data.train.split("[")[0] not in whole:
        return None
    train = select_rows(data.train, whole, image, label)
    for split in held_out:
        if split.origin == train.origin:
            kept = np.setdiff1d(train.indices, split.indices)
            train = replace(train, indices=kept)
    return replace(
        train, rows=select_rows(train.origin, whole, image, label).rows.select(train.indices)
    )
