"""A data set as it lies on the Hub or in a folder: all of its splits, undecoded, and which columns
are meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets

from mega_hf.errors import DataError, raise_if_out_of_space
from mega_hf.recipe.data import Data
from mega_hf.recipe.paths import is_local
from mega_hf.recipe.placeholders import existing
from mega_hf.runtime.hub_client import describe_error, is_of_hub, set_timeout


def open_dataset(data: Data) -> tuple[datasets.DatasetDict, Data, dict[str, Any]]:
    """Load all splits, undecoded; the returned Data has the commit pinned where the data set is on
    the Hub."""
    path = existing(data.path)
    # One HEAD request a load goes to a counter elsewhere; a merge of local files has no business on
    # the network.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        revision = None
        if not is_local(path):
            from huggingface_hub import resolve_revision

            set_timeout()
            revision = resolve_revision(path, revision=data.revision, repo_type="dataset").resolved
        whole = datasets.load_dataset(path, data.name, revision=revision)
    except Exception as error:  # datasets raises whatever its readers met
        # where it writes what it has read
        raise_if_out_of_space(error, datasets.config.HF_DATASETS_CACHE)
        what, expected = "the data set can't be read", "a data set"
        got = f"{path}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        hint = (
            "the folder must be readable by datasets.load_dataset: parquet files or pictures by"
            " class"
        )
        if not is_local(path) and is_of_hub(error):  # else it is the files' own fault
            reason, hint = describe_error(error, f"datasets/{path}", data.revision or "main")
            what = f"{what}: {reason}"
            expected = "a data set on the Hub, or ./FOLDER"
            got = path
        raise DataError(what, key="path", expected=expected, got=got, hint=hint) from None
    source: dict[str, Any] = {"local": Path(path).name}
    if not is_local(path):
        _refuse_other_revision(whole, str(revision), path)
        source = {"hub": path, "revision": revision}
        data = data.model_copy(update={"revision": revision})
    return whole, data, source


def _refuse_other_revision(whole: datasets.DatasetDict, revision: str, path: str) -> None:
    """Without a network, `datasets` takes the newest cached copy, whatever revision was asked
    for."""
    for rows in whole.values():
        if any(revision not in file["filename"] for file in rows.cache_files):
            hint = "connect once, so that this revision is cached"
            got = f"another one of {path}"
            raise DataError(
                "another revision is cached",
                key="revision",
                expected=revision,
                got=got,
                hint=hint,
            )


def find_columns(
    data: Data, whole: datasets.DatasetDict
) -> tuple[str, str, tuple[str, ...] | None]:
    """Return the picture column, the label column, and the class names if the data set has them.

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
            f"{image} holds no pictures",
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
            f"{label} holds no classes",
            key="label",
            expected="a ClassLabel or integer column",
            got=feature,
            hint="data.label: the name of the label column",
        )
    return image, label, None


def _only(features: datasets.Features, kind: type, key: str) -> str:
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        got = ", ".join(found) or "none among " + ", ".join(features)
        raise DataError(
            f"which column is the {key}?",
            expected=f"one {kind.__name__} column",
            got=got,
            hint=f"data.{key}: NAME",
        )
    return found[0]
