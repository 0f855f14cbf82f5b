"""What a model's folder holds, read before any library sees it: configuration, and dtypes of the
weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch

from mega_hf.errors import ParentError
from mega_hf.models.safety import (
    Allowance,
    check_reach,
    check_shards,
    open_header,
    stored_allowance,
)
from mega_hf.runtime.untrusted import read_json

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_INDEX = "model.safetensors.index.json"
_ALSO_READ = (
    "preprocessor_config.json",
    "processor_config.json",
    "adapter_config.json",
    "generation_config.json",
)


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Read config.json, which must be timm's (`architecture`) or transformers' (`model_type`).

    What else a library would read beside the weights is looked at too.

    Raises:
        ParentError: a file is no JSON, out of bounds (`runtime.untrusted`), or names what lies
            outside the folder.
    """
    with _readable(name, folder / "config.json", "JSON"):
        config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not ("model_type" in config or "architecture" in config):
        expected = "timm's (with architecture) or transformers' (with model_type)"
        raise ParentError(
            f"{name}: not a model's configuration",
            where=str(folder / "config.json"),
            expected=expected,
            got="neither key",
            hint="save the model with its own library",
        )
    with _readable(name, folder / "config.json", "a configuration of this folder's weights alone"):
        check_reach(config)
    for other in _ALSO_READ:
        if (folder / other).exists():
            with _readable(name, folder / other, "JSON"):
                read_json(folder / other)
    if (folder / _INDEX).exists():
        with _readable(name, folder / _INDEX, "shards in this folder"):
            check_shards(read_json(folder / _INDEX, largest=2**60), folder)
    return config


@contextmanager
def _readable(name: str, file: Path, expected: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ParentError(
            f"{name}: {file.name} can't be read",
            where=str(file),
            expected=expected,
            got=error,
            hint="download it again, or save it with its own library",
        ) from None


def stored_dtypes(folder: Path, name: str) -> dict[str, torch.dtype]:
    """Return the dtype of every floating entry in a folder's safetensors files.

    Raises:
        ParentError: there are none, or one is truncated or damaged.
    """
    return {
        key: dtype
        for file in weight_files(folder, name)
        for key, dtype in read_dtypes(file, name).items()
    }


def weight_files(folder: Path, name: str) -> list[Path]:
    """Return a folder's safetensors files.

    Raises:
        ParentError: there are none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ParentError(
            f"{name}: no safetensors file",
            where=str(folder),
            expected="*.safetensors",
            got="none",
            hint="save it with its own library as safetensors",
        )
    return files


def read_dtypes(file: Path, name: str) -> dict[str, torch.dtype]:
    """Read the dtypes of a file's floating tensors; a truncated file fails here, before a library
    sees it."""
    with _whole(file, name), open_header(file) as opened:
        stored = {key: opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
    return {key: _DTYPES[kind] for key, kind in stored.items() if kind in _DTYPES}


def allowance(files: list[Path], name: str) -> Allowance:
    """Return how large the model of these safetensors files may be. Raises: as `read_dtypes`."""
    with _whole(files[0], name):
        return stored_allowance(files)


@contextmanager
def _whole(file: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        hint = "download it again: it is truncated, damaged, or no safetensors file"
        raise ParentError(
            f"{name}: unreadable weights",
            where=str(file),
            expected="safetensors",
            got=error,
            hint=hint,
        ) from None
