"""A classifier of transformers' from a folder, no code of the folder's run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mega_hf.errors import ParentError
from mega_hf.models.loaded import IRRELEVANT, LoadedModel, by_entry, plain
from mega_hf.models.safety import Allowance, check_pictures, rehearsal

# else it may ask whether to run the folder's code
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def unweighted_transformers(
    folder: Path, dtypes: dict[str, torch.dtype], allowed: Allowance
) -> LoadedModel:
    """Build what a folder's config.json describes, with random weights."""
    from transformers import AutoModelForImageClassification

    config = _rehearse(folder, allowed)
    model = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    return _describe_transformers(model.float(), folder, dtypes)


def open_transformers(
    folder: Path, dtypes: dict[str, torch.dtype], allowed: Allowance
) -> LoadedModel:
    """Load a folder.

    Raises:
        ParentError: weights are missing, or the model is larger than `allowed`.
    """
    from transformers import AutoModelForImageClassification

    _rehearse(folder, allowed)
    with without_bars():
        model, info = AutoModelForImageClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, use_safetensors=True, **_LOCAL
        )
    lost = sorted([*info["missing_keys"], *info["mismatched_keys"]], key=str)
    if lost:
        raise ParentError(
            "weights are missing",
            where=str(folder),
            expected="all of the model's",
            got=f"no {lost[0]}",
            hint="save the whole model, head included, with save_pretrained",
        )
    return _describe_transformers(model, folder, dtypes)


def _rehearse(folder: Path, allowed: Allowance) -> Any:
    """Return a folder's configuration, once the model that it describes was seen to be as small as
    allowed."""
    from transformers import AutoConfig, AutoModelForImageClassification

    config = AutoConfig.from_pretrained(folder, **_LOCAL)
    with rehearsal(allowed) as built:
        built.append(AutoModelForImageClassification.from_config(config, trust_remote_code=False))
    return AutoConfig.from_pretrained(folder, **_LOCAL)  # the model may have changed its own


def _describe_transformers(model: Any, folder: Path, dtypes: dict[str, torch.dtype]) -> LoadedModel:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, **_LOCAL)
    check_pictures(processor.to_dict())
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
        transform=lambda picture: _processed(processor, picture),
        folder=folder,
        dtypes=by_entry(model, dtypes, default=kind),
    )


def _processed(processor: Any, picture: Image.Image) -> torch.Tensor:
    return processor(images=picture.convert("RGB"), return_tensors="pt")["pixel_values"][0]


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar for each file that it reads or writes."""
    from transformers.utils import logging

    were_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            logging.enable_progress_bar()
