"""A loaded classifier of either library, as a record."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from mega_hf.runtime.files import FileStamp

# timm's arguments that matter in training alone
DROPOUT = {
    "drop_rate",
    "drop_path_rate",
    "drop_block_rate",
    "attn_drop_rate",
    "proj_drop_rate",
    "pos_drop_rate",
    "patch_drop_rate",
}
# Entries of a configuration that do not change the function at inference
IRRELEVANT = DROPOUT | {
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "id2label",
    "label2id",
    "architectures",
    "label_names",
    "num_classes",
    "num_labels",
    "initializer_range",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "problem_type",
    "pretrained_cfg",
    "do_pooling",
}


@dataclass(frozen=True)
class LoadedModel:
    """A loaded classifier, with everything that must be equal in models that are merged."""

    model: nn.Module  # float32, evaluation mode, on the CPU
    library: str  # timm or transformers
    structure: dict[str, Any]  # architecture and the arguments that decide its function
    labels: tuple[str, ...] | None  # class names by index, if the model knows them
    num_classes: int
    preprocessing: dict[str, Any]
    # an image to [channels, height, width] float32
    transform: Callable[[Image.Image], torch.Tensor]
    # of the floating-point entries, as stored; empty if not known
    dtypes: dict[str, torch.dtype]
    folder: Path | None  # None if it was made from an architecture's name
    # its weight files as they were before they were read
    stamps: tuple[FileStamp, ...] = ()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the model's input."""
        channels, height, width = self.transform(Image.new("RGB", (32, 32))).shape
        return channels, height, width

    def state(self) -> dict[str, torch.Tensor]:
        """Return a copy of the state dict, in the dtypes in which it was stored."""
        return {
            k: v.to(self.dtypes.get(k, v.dtype), copy=True)
            for k, v in self.model.state_dict().items()
        }

    def view(self) -> dict[str, torch.Tensor]:
        """Return the state dict like `state`, without copying where dtypes allow; only to read."""
        return {k: v.to(self.dtypes.get(k, v.dtype)) for k, v in self.model.state_dict().items()}

    def learned(self) -> set[str]:
        """Return the names of the parameters."""
        return {name for name, _ in self.model.named_parameters(remove_duplicate=False)}

    def tied(self) -> dict[str, str]:
        """Return tied parameters: second name -> first name."""
        first: dict[int, str] = {}
        tied = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            known = first.setdefault(id(parameter), name)
            if known != name:
                tied[name] = known
        return tied


def by_entry(
    model: nn.Module, stored: dict[str, torch.dtype], default: torch.dtype | None = None
) -> dict[str, torch.dtype]:
    """Return the stored dtype of each floating-point entry of a model.

    Entries with another name on disk have the file's dtype, if it has only one, else `default`.
    """
    kinds = set(stored.values())
    default = next(iter(kinds)) if len(kinds) == 1 else default or torch.float32
    return {
        k: stored.get(k, default) for k, v in model.state_dict().items() if v.is_floating_point()
    }


def plain(value: Any) -> Any:
    """Return a value after a round trip through JSON; other types become text."""
    return json.loads(json.dumps(value, default=str))
