"""Memory-mapped weights: they stay on the disk and are read where they are needed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mega_hf.weights.space import StateDict, digest


def map_files(files: Sequence[Path], sha256: str) -> StateDict | None:
    """Return the memory-mapped tensors of safetensors files, if they are a known state dict.

    Args:
        files: no file, one file or several shards.
        sha256: the digest of the state dict. Files with another content give None, such as those
            of a library that stores tensors under other names.
    """
    try:
        state = {name: tensor for file in files for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError):
        return None
    return state if state and digest(state) == sha256 else None


def map_copy(state: StateDict) -> StateDict:
    """Return a state dict that is memory-mapped from a temporary file."""
    # The file is unlinked at once, and its space is freed with the last tensor.
    with tempfile.NamedTemporaryFile(prefix="mega_hf-parent-") as file:
        save_file(separate_tensors(state), file.name)
        return load_file(file.name)


def separate_tensors(state: StateDict) -> StateDict:
    """Return the same tensors as safetensors needs them: contiguous, and no memory shared.

    Tensors are copied only where they have to be.
    """
    seen: set[int] = set()
    separate = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        is_whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize
        if not (is_whole and tensor.is_contiguous()) or tensor.data_ptr() in seen:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(tensor.data_ptr())
        separate[name] = tensor
    return separate
