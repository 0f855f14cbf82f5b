"""Open a data set on the Hub or in a folder."""

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
    """Load all splits of a data set, undecoded.

    Returns:
        the splits; the recipe's block, with the commit pinned if the data set is on the Hub; and
        where it came from, {hub, revision} or {local}.

    Raises:
        DataError: the data set can't be read.
    """
    path = existing(data.path)
    # One HEAD request per load would go to a download counter; local files need no network.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        revision = None
        if not is_local(path):
            from huggingface_hub import resolve_revision

            set_timeout()
            revision = resolve_revision(path, revision=data.revision, repo_type="dataset").resolved
        whole = datasets.load_dataset(path, data.name, revision=revision)
    except Exception as error:  # the readers of datasets raise anything
        raise_if_out_of_space(error, datasets.config.HF_DATASETS_CACHE)
        what, expected = "the data set can't be read", "a data set"
        got = f"{path}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        hint = "datasets.load_dataset must be able to read it: parquet files, or images by class"
        if not is_local(path) and is_of_hub(error):  # otherwise the files are at fault
            reason, hint = describe_error(error, f"datasets/{path}", data.revision or "main")
            what = f"{what}: {reason}"
            expected = "a data set on the Hub, or ./FOLDER"
            got = path
        raise DataError(what, key="path", expected=expected, got=got, hint=hint) from None
    source: dict[str, Any] = {"local": Path(path).name}
    if not is_local(path):
        _check_revision(whole, str(revision), path)
        source = {"hub": path, "revision": revision}
        data = data.model_copy(update={"revision": revision})
    return whole, data, source


def _check_revision(whole: datasets.DatasetDict, revision: str, path: str) -> None:
    """Raise DataError if another revision was loaded.

    Without a network, `datasets` takes the newest cached copy, whatever the revision.
    """
    for rows in whole.values():
        if any(revision not in file["filename"] for file in rows.cache_files):
            raise DataError(
                "another revision is cached",
                key="revision",
                expected=revision,
                got=f"another one of {path}",
                hint="connect once, so that this revision is cached",
            )
