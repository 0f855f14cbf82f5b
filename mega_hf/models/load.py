"""Load a model from a folder in timm's or transformers' layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from mega_hf.errors import ParentError, library_errors
from mega_hf.models.loaded import LoadedModel
from mega_hf.models.timm_models import build_timm_from_folder, open_timm
from mega_hf.models.transformers_models import build_transformers, open_transformers
from mega_hf.models.weight_files import read_config, stored_dtypes, weight_files
from mega_hf.runtime.files import file_stamps
from mega_hf.weights.space import digest


def open_model(folder: Path, name: str = "") -> LoadedModel:
    """Load a folder in timm's or transformers' layout, whichever its config.json has.

    Args:
        folder: config.json and *.safetensors.
        name: what errors call the model; its folder's name by default.

    Raises:
        ParentError: the folder can't be read as a classifier of either library.
    """
    name = name or folder.name
    config = read_config(folder, name)
    dtypes = stored_dtypes(folder, name)
    stamps = file_stamps(weight_files(folder, name))
    with library_errors(
        f"the model {name} can't be loaded",
        str(folder),
        "a classifier",
        "load it with timm or transformers alone to see what is missing",
    ):
        if "model_type" in config:
            opened = open_transformers(folder, dtypes)
        else:
            opened = open_timm(folder, config, dtypes)
        return replace(opened, stamps=stamps)


def build_model(folder: Path, name: str, dtypes: dict[str, torch.dtype]) -> LoadedModel:
    """Build what a folder's config.json describes, with random weights, e.g. to time it.

    Args:
        folder: config.json.
        name: what errors call the model.
        dtypes: of the floating-point entries, as stored.

    Raises:
        ParentError: the configuration can't be read, or its library can't build it.
    """
    config = read_config(folder, name)
    with library_errors(
        f"{name} can't be built",
        str(folder),
        "a classifier's config.json",
        "save it with its own library",
    ):
        if "model_type" in config:
            return build_transformers(folder, dtypes)
        return build_timm_from_folder(folder, config, dtypes)


def try_model(opened: LoadedModel, name: str) -> None:
    """Run a model on one image, before a run depends on it.

    Raises:
        ParentError: the model does not take images as its preprocessing makes them, or does not
            return one number for each of its classes.
    """
    with library_errors(
        f"the model {name} can't be run",
        str(opened.folder or ""),
        f"{opened.num_classes} numbers for an image of the size that its preprocessing makes",
        "correct its config.json",
    ):
        image = opened.transform(Image.new("RGB", (32, 32)))[None]
        with torch.inference_mode():
            output = opened.model.eval()(image)
        shape = tuple(getattr(output, "logits", output).shape)
        if shape != (1, opened.num_classes):
            raise ValueError(f"an output of shape {shape}")


def holds_weights(folder: Path, sha256: str) -> bool:
    """Return whether a folder holds a model whose state dict has this digest."""
    try:
        return folder.is_dir() and digest(open_model(folder).view()) == sha256
    except ParentError:
        return False
