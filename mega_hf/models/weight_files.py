"""Read a model folder's configuration, and the headers of its weights, before a library does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch

from mega_hf.errors import ParentError
from mega_hf.models.safety import check_reach, check_shards
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

    The other JSON files that a library would read beside the weights are checked too.

    Raises:
        ParentError: a file is not JSON, is too long, or names something outside the folder.
    """
    with _readable(name, folder / "config.json", "JSON"):
        config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not ("model_type" in config or "architecture" in config):
        raise ParentError(
            f"{name}: not a model's configuration",
            where=str(folder / "config.json"),
            expected="timm's (with architecture) or transformers' (with model_type)",
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
            check_shards(read_json(folder / _INDEX), folder)
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
    """Return the dtype of every floating-point entry in a folder's safetensors files.

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
    """Read the dtypes of a safetensors file's floating-point entries from its header.

    Raises:
        ParentError: the file is truncated, damaged, or not a safetensors file.
    """
    try:
        if file.exists() and not file.is_file():  # opening a pipe would wait for ever
            raise OSError("not a regular file")
        with safetensors.safe_open(file, framework="pt") as opened:
            stored = {key: opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ParentError(
            f"{name}: unreadable weights",
            where=str(file),
            expected="safetensors",
            got=error,
            hint="download it again: it is truncated, damaged, or not a safetensors file",
        ) from None
    return {key: _DTYPES[kind] for key, kind in stored.items() if kind in _DTYPES}
