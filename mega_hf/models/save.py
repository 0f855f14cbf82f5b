"""Save merged weights to a folder that the parents' own library loads."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from mega_hf.models.loaded import LoadedModel
from mega_hf.models.transformers_models import without_progress_bars
from mega_hf.weights.mapped import separate_tensors

_KEPT = ("config.json", "preprocessor_config.json", "processor_config.json")


def save_model(folder: Path, like: LoadedModel, state: dict[str, torch.Tensor]) -> None:
    """Save weights in the layout of the model that they were merged from.

    Args:
        folder: a new folder.
        like: the first parent, whose configuration and preprocessing are kept.
        state: a complete state dict in the dtypes to store.
    """
    folder.mkdir(parents=True)
    if like.library == "timm":
        save_timm(folder, like.model, state, like.labels, like.folder)
    else:
        _save_transformers(folder, like, state)


def layout_digest(like: LoadedModel) -> str:
    """Return the SHA-256 of the configuration and preprocessing that `save_model` keeps."""
    described = [like.library, like.structure, like.num_classes, like.labels, like.preprocessing]
    sha = hashlib.sha256(json.dumps(described).encode())
    for name in _KEPT if like.folder is not None else ():
        assert like.folder is not None
        if (like.folder / name).is_file():
            sha.update(
                f"{name} {hashlib.sha256((like.folder / name).read_bytes()).hexdigest()}".encode()
            )
    return sha.hexdigest()


def save_timm(
    folder: Path,
    model: nn.Module,
    state: dict[str, torch.Tensor],
    labels: tuple[str, ...] | None,
    source: Path | None = None,
) -> None:
    """Write weights and config.json, that of `source` if given, in timm's layout."""
    if source is not None:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    else:
        # save_for_hf fails on a channels-last model
        from timm.models._hub import save_config_for_hf

        save_config_for_hf(
            model,
            str(folder / "config.json"),
            model_config={"label_names": labels} if labels else {},
        )
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # timm writes num_classes here too; transformers' wrapper would then pass it twice and fail.
    config.get("model_args", {}).pop("num_classes", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(separate_tensors(state), folder / "model.safetensors", metadata={"format": "pt"})


def _save_transformers(folder: Path, like: LoadedModel, state: dict[str, torch.Tensor]) -> None:
    from transformers import AutoModelForImageClassification

    assert like.folder is not None, "transformers models come from folders"
    # Another instance, since the resident model stays float32. Only save_pretrained knows the names
    # on disk.
    with without_progress_bars():
        model = AutoModelForImageClassification.from_pretrained(
            like.folder, dtype="auto", local_files_only=True
        )
        model.load_state_dict(state)
        # save_pretrained empties its dict
        model.save_pretrained(folder, state_dict=dict(state))
    for name in _KEPT[1:]:
        if (like.folder / name).is_file():
            shutil.copyfile(like.folder / name, folder / name)
