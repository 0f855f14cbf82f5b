"""What a model's folder holds, read before any library sees it: configuration, and dtypes of the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import torch

from mega_hf.errors import ParentError

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Read config.json, which must be timm's (`architecture`) or transformers' (`model_type`)."""
    where = str(folder / "config.json")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParentError(
            f"{name}: config.json can't be read",
            where=where,
            expected="JSON",
            got=error,
            remedy="download it again, or save it with its own library",
        ) from None
    if not isinstance(config, dict) or not ("model_type" in config or "architecture" in config):
        expected = "timm's (with architecture) or transformers' (with model_type)"
        raise ParentError(
            f"{name}: not a model's configuration",
            where=where,
            expected=expected,
            got="neither key",
            remedy="save the model with its own library",
        )
    return config


def stored_dtypes(folder: Path, name: str) -> dict[str, torch.dtype]:
    """Return the dtype of every floating entry in a folder's safetensors files.

    Raises:
        ParentError: there are none, or one is truncated or damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ParentError(
            f"{name}: no safetensors file",
            where=str(folder),
            expected="*.safetensors",
            got="none",
            remedy="save it with its own library as safetensors",
        )
    return {key: dtype for file in files for key, dtype in read_dtypes(file, name).items()}


def read_dtypes(file: Path, name: str) -> dict[str, torch.dtype]:
    """Read the dtypes of a file's floating tensors; a truncated file fails here, before a library sees it."""
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            stored = {key: opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        remedy = "download it again: it is truncated, damaged, or no safetensors file"
        raise ParentError(
            f"{name}: unreadable weights", where=str(file), expected="safetensors", got=error, remedy=remedy
        ) from None
    return {key: _DTYPES[kind] for key, kind in stored.items() if kind in _DTYPES}
