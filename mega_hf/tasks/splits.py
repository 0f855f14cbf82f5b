"""A data set's splits: which rows, which columns, which classes; and pictures as tensors. Test is
kept apart."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np

from mega_hf.errors import DataError
from mega_hf.recipe.data import SECOND_LOOK_SEED, CalibrationRows, Data, Sample
from mega_hf.tasks.dataset import find_columns, open_dataset
from mega_hf.tasks.image_classification import check_labels
from mega_hf.tasks.rows import Split, draw_places, hash_rows, sample_rows, select_rows

DEFAULT_SAMPLE = 5000
# more identical pictures than this share of the validation rows is a leak, not a coincidence
_SHARED_LIMIT = 0.01


@dataclass(frozen=True)
class Splits:
    """What a merge needs of a data set."""

    train: Split | None  # what neither validation nor test holds, of the training split
    validation: Split
    test: Split
    class_names: tuple[str, ...] | None
    classes: int
    data: Data  # with every default filled in: columns, splits, revision
    source: dict[str, Any]  # {hub, revision} or {local}: never a path of this machine
    digests: dict[str, str]  # validation, test, second_look: SHA-256 over rows
    shared_pictures: int  # pictures that stand in validation and in test
    notices: tuple[str, ...]
    # rows of `train` for BatchNorm's statistics; None where there are none
    calibration: Split | None = None
    # validation rows that the search never sees, and so no part of `validation`
    second_look: Split | None = None

    @property
    def named(self) -> list[tuple[str, Split, str]]:
        """The rows that a run takes of the data set beside those for training: name, rows,
        digest."""
        rows = {"validation": self.validation, "test": self.test, "calibration": self.calibration}
        rows |= {"second_look": self.second_look}
        return [
            (name, split, self.digests[name])
            for name, split in rows.items()
            if split is not None and name in self.digests
        ]


def load_splits(data: Data, trained_here: bool = False) -> Splits:
    """Read a data set and divide it as a recipe says.

    Args:
        data: which splits.
        trained_here: whether all parents are trained on what validation and test leave; nothing is
            to be said then.

    Raises:
        DataError: it can't be found or read, a column or split is missing, a split is empty, labels
            are out of range, a picture is broken, or validation and test overlap.
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
        _refuse_overlap(validation, test)
    notices: tuple[str, ...] = ()
    if validation.origin == data.train.split("[")[0] and not trained_here:
        rows = (
            f"are {validation.spec}"
            if isinstance(data.validation, Sample)
            else f"come from {validation.origin}"
        )
        notices = (f"validation rows {rows}: right only if no parent was trained on them",)
    hashes = {"validation": hash_rows(validation), "test": hash_rows(test)}
    shared = _shared_pictures(hashes["validation"], hashes["test"])
    with DataError.about("train"):
        train = _remaining(data, whole, image, label, [validation, test])
    calibration = _calibration(data, whole, image, label, train, [validation, test])
    labelled = [split for split in (train, validation, test) if split is not None and len(split)]
    classes = len(names) if names else int(max(split.labels().max() for split in labelled)) + 1
    # training looks at those of its rows
    for key, split in (("validation", validation), ("test", test)):
        with DataError.about(key):
            check_labels(split, classes)
    if shared:
        notices = (*notices, f"{shared} validation pictures stand in the test split too")
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
    """Return splits of which the calibration rows are known, by the recipe's entry and by their
    digest.

    Raises:
        DataError: there are no two; or a picture is broken.
    """
    rows = splits.calibration
    if rows is None or len(rows) < 2:
        raise DataError(
            "no pictures to recalibrate BatchNorm's statistics on",
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
    """Return the rows that the recipe names for BatchNorm's statistics, or the first choice: some
    of `train`."""
    if isinstance(data.calibration, str):
        with DataError.about("calibration"):
            chosen = select_rows(data.calibration, whole, image, label)
            for split, name in zip(held_out, ("validation", "test"), strict=True):
                _refuse_overlap(split, chosen, f"{name} and calibration")
        return chosen
    if train is None or not len(train):
        return None
    return sample_rows(train, data.calibration or CalibrationRows())


def load_split(data: Data, spec: str) -> tuple[Split, tuple[str, ...] | None, int]:
    """Read one split, for `evaluate`: the split, the class names if the data set has them, and how
    many classes."""
    whole, data, _ = open_dataset(data)
    image, label, names = find_columns(data, whole)
    split = select_rows(spec, whole, image, label)
    classes = len(names) if names else int(split.labels().max()) + 1
    check_labels(split, classes)
    return split, names, classes


def load_sample(
    data: Data, spec: str | None, size: int
) -> tuple[Split, Split | None, tuple[str, ...] | None, int]:
    """Read some rows to measure on, and others to recalibrate on, for `compare`.

    Args:
        data: the data set.
        spec: a slice; by default the split named validation, else the training split.
        size: rows to measure on, drawn at random where there are more.

    Returns:
        both, the second None where there are no others; the class names if the data set has them,
        how many classes.

    Raises:
        DataError: it can't be read, or a label is out of range.
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
    """Take the data set's own validation and test splits; else draw the validation rows from the
    training split."""
    if data.test is None:
        if "test" not in whole:
            got = ", ".join(whole)
            raise DataError(
                "no test split",
                expected="data.test, or a split named test",
                got=got,
                hint="--test SPLIT",
            )
        data = data.model_copy(update={"test": "test"})
    if data.validation is None and "validation" in whole:
        data = data.model_copy(update={"validation": "validation"})
    if data.validation is None:
        if data.train not in whole:
            got = ", ".join(whole)
            raise DataError(
                "no validation split",
                expected="data.validation, or a training split",
                got=got,
                hint="--validation",
            )
        size = min(DEFAULT_SAMPLE, len(whole[data.train]) // 10)
        sample = Sample(split=data.train, size=max(1, size))
        data = data.model_copy(update={"validation": sample})
    return data


def _divide(
    validation: Split, data: Data, hashes: dict[str, list[bytes]]
) -> tuple[Split, Split | None]:
    """Return the validation rows that are searched on, and those of the second look, if there is
    one.

    Args:
        validation: all of them.
        data: which share is kept for the second look.
        hashes: of each split's rows; what is divided is put in its place.

    Raises:
        DataError: the share is no row.
    """
    if not data.second_look:
        return validation, None
    count = len(validation)
    later = draw_places(count, min(round(data.second_look * count), count - 1), SECOND_LOOK_SEED)
    if not len(later):
        raise DataError(
            "no validation rows for a second look",
            key="second_look",
            expected=f"a share of {validation.spec} that is a row or more",
            got=f"{data.second_look:g} of {count}",
            hint="more validation rows; or data.second_look: 0, and there is none",
        )
    places = {"validation": np.setdiff1d(np.arange(count), later), "second_look": later}
    whole = hashes["validation"]
    hashes |= {name: [whole[place] for place in chosen] for name, chosen in places.items()}
    searched, second = (
        validation.take(chosen, data.text_of(name, len(chosen))) for name, chosen in places.items()
    )
    return searched, second


def _refuse_overlap(one: Split, other: Split, names: str = "validation and test") -> None:
    if one.origin == other.origin:
        both = np.intersect1d(one.indices, other.indices)
        if len(both):
            raise DataError(
                f"{names} overlap",
                expected="no common rows",
                got=f"{len(both)} rows of {one.origin} in both {one.spec} and {other.spec}",
                hint=(
                    "what has seen rows that it is measured on makes the measurement worthless:"
                    " other slices"
                ),
            )


def _shared_pictures(validation: list[bytes], test: list[bytes]) -> int:
    shared = len(set(validation) & set(test))
    if shared > _SHARED_LIMIT * len(validation):
        raise DataError(
            "validation and test hold the same pictures",
            key="test",
            expected=f"at most {_SHARED_LIMIT:.0%} of the validation rows",
            got=f"{shared} of {len(validation)}",
            hint="choose splits that are different rows",
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
