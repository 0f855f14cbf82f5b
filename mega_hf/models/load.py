"""Load a model from a folder, whichever library it is of."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from mega_hf.errors import ParentError, library_errors
from mega_hf.models.loaded import LoadedModel
from mega_hf.models.safety import Allowance, check_depth, check_pictures
from mega_hf.models.timm_models import _open_timm, _unweighted_timm
from mega_hf.models.transformers_models import open_transformers, unweighted_transformers
from mega_hf.models.weight_files import allowance, read_config, stored_dtypes, weight_files
from mega_hf.weights.space import digest


def open_model(folder: Path, name: str = "") -> LoadedModel:
    """Load a folder in timm's or transformers' layout, whichever its config.json is.

    Args:
        folder: config.json and *.safetensors.
        name: what errors call the model; its folder's name by default.

    Raises:
        ParentError: the folder can't be read as a classifier of either library.
    """
    name = name or folder.name
    config = read_config(folder, name)
    dtypes = stored_dtypes(folder, name)
    with library_errors(
        f"the model {name} can't be loaded",
        str(folder),
        "a classifier",
        "load it with timm or transformers alone to see what is missing",
    ):
        allowed = allowance(weight_files(folder, name), name)
        check_depth(config, allowed)
        is_timm = "model_type" not in config
        opened = (
            _open_timm(folder, config, dtypes, allowed)
            if is_timm
            else open_transformers(folder, dtypes, allowed)
        )
        check_pictures(list(opened.input_shape))
        return opened


def unweighted_model(folder: Path, name: str, dtypes: dict[str, torch.dtype]) -> LoadedModel:
    """Build what a folder's config.json describes, with random weights, e.g. to time it.

    Args:
        folder: config.json.
        name: what errors call the model.
        dtypes: of the floating entries, as stored.

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
        files = sorted(folder.glob("*.safetensors"))
        allowed = allowance(files, name) if files else Allowance()
        check_depth(config, allowed)
        if "model_type" in config:
            built = unweighted_transformers(folder, dtypes, allowed)
        else:
            built = _unweighted_timm(folder, config, dtypes, allowed)
        check_pictures(list(built.input_shape))
        return built


def try_model(opened: LoadedModel, name: str) -> None:
    """Show a model one picture, before a run depends on it.

    Raises:
        ParentError: it can't take pictures as its preprocessing makes them, or does not answer with
            its classes.
    """
    expected = (
        f"{opened.num_classes} numbers for a picture of the size that its preprocessing makes"
    )
    with library_errors(
        f"the model {name} can't be run", str(opened.folder or ""), expected, "mend its config.json"
    ):
        picture = opened.transform(Image.new("RGB", (32, 32)))[None]
        with torch.inference_mode():
            answer = opened.model.eval()(picture)
        shape = tuple(getattr(answer, "logits", answer).shape)
        if shape != (1, opened.num_classes):
            raise ValueError(f"an answer of shape {shape}")


def holds_weights(folder: Path, sha256: str) -> bool:
    """Say whether a folder holds a model whose state dict has this digest."""
    try:
        return folder.is_dir() and digest(open_model(folder).view()) == sha256
    except ParentError:
        return False
