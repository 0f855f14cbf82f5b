"""Load transformers image classifiers from folders, without running code from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mega_hf.errors import ParentError
from mega_hf.models.loaded import IRRELEVANT, LoadedModel, by_entry, plain

# without trust_remote_code=False, transformers may ask whether to run the folder's code
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def build_transformers(folder: Path, dtypes: dict[str, torch.dtype]) -> LoadedModel:
    """Build what a folder's config.json describes, with random weights."""
    from transformers import AutoConfig, AutoModelForImageClassification

    config = AutoConfig.from_pretrained(folder, **_LOCAL)
    model = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    return _describe_transformers(model.float(), folder, dtypes)


def open_transformers(folder: Path, dtypes: dict[str, torch.dtype]) -> LoadedModel:
    """Load a folder in transformers' layout.

    Raises:
        ParentError: weights are missing.
    """
    from transformers import AutoModelForImageClassification

    with without_progress_bars():
        model, info = AutoModelForImageClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, use_safetensors=True, **_LOCAL
        )
    # transformers initializes these and only logs a warning
    missing = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if missing:
        raise ParentError(
            "weights are missing",
            where=str(folder),
            expected="all of the model's weights",
            got=f"no {', '.join(missing[:5])}",
            hint="save the whole model, head included, with save_pretrained",
        )
    return _describe_transformers(model, folder, dtypes)


def _describe_transformers(model: Any, folder: Path, dtypes: dict[str, torch.dtype]) -> LoadedModel:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, **_LOCAL)
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    unnamed = all(str(name) == f"LABEL_{i}" for i, name in enumerate(names))
    structure = {k: v for k, v in model.config.to_dict().items() if k not in IRRELEVANT}
    kind = next(iter(set(dtypes.values())), torch.float32)
    return LoadedModel(
        model=model.eval(),
        library="transformers",
        structure=plain({"architecture": type(model).__name__} | structure),
        labels=None if unnamed else tuple(map(str, names)),
        num_classes=model.config.num_labels,
        preprocessing={
            k: v for k, v in plain(processor.to_dict()).items() if not k.startswith("_")
        },
        transform=lambda image: processor(images=image.convert("RGB"), return_tensors="pt")[
            "pixel_values"
        ][0],
        folder=folder,
        dtypes=by_entry(model, dtypes, default=kind),
    )


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing a progress bar for each file."""
    from transformers.utils import logging

    were_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            logging.enable_progress_bar()
